//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"

	"github.com/netsoc/webspaced/webspace"
)

// Images implements [webspace.Imager].
func (r *Runtime) Images(ctx context.Context) ([]webspace.Image, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	var list []webspace.Image
	for _, name := range slices.Sorted(maps.Keys(r.opts.Images)) {
		image := r.opts.Images[name]
		content, err := json.Marshal(image)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(content)
		list = append(list, webspace.Image{
			Aliases:     []webspace.ImageAlias{{Name: name, Description: image.Description}},
			Fingerprint: hex.EncodeToString(sum[:]),
			Properties:  map[string]string{"description": image.Description},
			Size:        int64(len(content)),
		})
	}
	return list, nil
}
