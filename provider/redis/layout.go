package redis

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/kvtools/valkeyrie/store"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/config/kv"

	"github.com/netsoc/webspaced/provider"
)

// entries are keys with their values.
type entries map[string]string

// encode returns the entries of a valid route: one for each scalar of its configuration, at the path of that.
func (p *Provider) encode(r provider.Route) (entries, error) {
	c := p.mapping.Configuration(r)
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var tree map[string]any
	if err := decoder.Decode(&tree); err != nil {
		return nil, fmt.Errorf("encode: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	delete(tree, "tls")
	flat := make(entries)
	flat.add(p.root, tree)
	for _, certificate := range r.Certificates {
		if certificate.Chain != "" {
			chain, key := p.certificateKeys(r.Name, certificate.Host)
			flat[chain], flat[key] = certificate.Chain, string(certificate.Key)
		}
	}
	return flat, nil
}

// certificateKeys are those of a certificate and its private key. Traefik takes the elements of a list as they come,
// whatever they are called: under names of their own, those of different routes are not in each other's way.
func (p *Provider) certificateKeys(route string, host provider.Host) (chain, key string) {
	name := p.root + "/tls/certificates/" + p.mapping.Deployment + "." + route + "." + host.String()
	return name + "/certFile", name + "/keyFile"
}

func (e entries) add(key string, value any) {
	switch value := value.(type) {
	case map[string]any:
		if len(value) == 0 {
			e[key] = "true" // Traefik's way to say that something without attributes is there
		}
		for name, v := range value {
			e.add(key+"/"+name, v)
		}
	case []any:
		var texts []string
		for i, v := range value {
			if text, ok := v.(string); ok {
				texts = append(texts, text)
			} else {
				e.add(key+"/"+strconv.Itoa(i), v)
			}
		}
		if len(texts) > 0 {
			e[key] = strings.Join(texts, ",")
		}
	default:
		e[key] = fmt.Sprint(value)
	}
}

// decode returns the route that stands in the entries, or one with nothing but the name if they are not just what encode
// returns for it.
func (p *Provider) decode(name string, stored entries) provider.Route {
	differs := provider.Route{Name: name}
	c, err := p.read(stored)
	if err != nil {
		return differs
	}
	r := p.mapping.Route(name, c)
	for i := range r.Certificates { // which come in the order of their keys, another one than that of their hosts
		if own := &r.Certificates[i]; own.Resolver == "" {
			chain, key := p.certificateKeys(name, own.Host)
			own.Chain, own.Key = stored[chain], provider.PrivateKey(stored[key])
		}
	}
	if r.Validate() != nil || p.mapping.Check(r) != nil {
		return differs
	}
	if want, err := p.encode(r); err != nil || !maps.Equal(want, stored) {
		return differs
	}
	return r
}

// read reads entries as Traefik does.
func (p *Provider) read(stored entries) (c *dynamic.Configuration, err error) {
	defer func() {
		if cause := recover(); cause != nil { // some contradictions between keys
			err = fmt.Errorf("%v", cause)
		}
	}()
	pairs := make([]*store.KVPair, 0, len(stored))
	for key, value := range stored {
		if value != "" { // which Traefik does not see
			pairs = append(pairs, &store.KVPair{Key: key, Value: []byte(value)})
		}
	}
	c = &dynamic.Configuration{}
	if len(pairs) == 0 {
		return c, nil
	}
	return c, kv.Decode(pairs, c, p.root)
}

// owner returns the name of the route that a key belongs to: what stands in Traefik's configuration under a name that
// begins with the deployment's is ours, as Traefik compares names. To it, case does not matter, and empty parts of a key
// are not there.
func (p *Provider) owner(key string) (route string, ours bool) {
	path := parts(p.path(key))
	if len(path) < 3 || !slices.Contains(sections[:], fold(path[0])) {
		return "", false
	}
	rest, ours := strings.CutPrefix(fold(path[2]), p.mapping.Deployment+".")
	name, _, _ := strings.Cut(rest, ".")
	return name, ours && provider.IsLabel(name)
}

// path is a key without the root.
func (p *Provider) path(key string) string { return strings.TrimPrefix(key, p.root+"/") }

func parts(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// fold returns one spelling for all that strings.EqualFold holds to be equal; in ASCII, the one in lower case.
func fold(s string) string {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return strings.Map(foldRune, s)
		}
	}
	return strings.ToLower(s)
}

func foldRune(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return unicode.ToLower(least)
}
