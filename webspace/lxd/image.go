package lxd

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/webspace"
)

// Images implements [webspace.Imager].
func (r *Runtime) Images(ctx context.Context) ([]webspace.Image, error) {
	var all []api.Image
	if _, err := r.client.get(ctx, r.client.path(url.Values{"recursion": {"1"}}, "images"), &all); err != nil {
		return nil, err
	}
	images := []webspace.Image{}
	for _, i := range all {
		if i.Type == string(api.InstanceTypeVM) {
			continue
		}
		image := webspace.Image{Fingerprint: i.Fingerprint, Properties: i.Properties, Size: i.Size}
		for _, a := range i.Aliases {
			image.Aliases = append(image.Aliases, webspace.ImageAlias{Name: a.Name, Description: a.Description})
		}
		images = append(images, image)
	}
	return images, nil
}

// findImage returns the fingerprint of the image with the given alias, fingerprint, or first 12 digits or more of it. It
// compares names with what the engine lists, so that a name can not be anything else to the engine, such as a path.
func (r *Runtime) findImage(ctx context.Context, name string) (string, error) {
	images, err := r.Images(ctx)
	if err != nil {
		return "", err
	}
	var matches []string
	for _, i := range images {
		for _, a := range i.Aliases {
			if a.Name == name {
				return i.Fingerprint, nil
			}
		}
		if len(name) >= 12 && strings.HasPrefix(i.Fingerprint, name) {
			matches = append(matches, i.Fingerprint)
		}
	}
	if len(matches) != 1 {
		return "", fmt.Errorf("lxd: %d images are called %.64q: %w", len(matches), name, errdefs.ErrNotFound)
	}
	return matches[0], nil
}
