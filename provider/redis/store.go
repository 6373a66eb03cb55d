package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/redis/go-redis/v9"
)

// batch is how many keys are asked for at a time, and how many places of Redis' table are looked at for them.
const batch = 1000

// values reads what stands below the root key; with the name of a route, what may belong to that one.
func (p *Provider) values(ctx context.Context, route string) (entries, error) {
	pattern := quote(p.root) + "/*"
	if route != "" {
		pattern += "/" + anyCase(p.mapping.Deployment+"."+route) + "*"
	}
	stored := make(entries)
	for cursor := uint64(0); ; {
		keys, next, err := p.client.Scan(ctx, cursor, pattern, batch).Result()
		if err != nil {
			return nil, err
		}
		for some := range slices.Chunk(keys, batch) {
			values, err := p.client.MGet(ctx, some...).Result()
			if err != nil {
				return nil, err
			}
			for i, value := range values {
				// What has another type than text, or is gone meanwhile, is as good as empty: Traefik does not see it.
				text, _ := value.(string)
				stored[some[i]] = text
			}
		}
		if cursor = next; cursor == 0 {
			return stored, nil
		}
	}
}

// get reads these keys; those that are not there are left out.
func (p *Provider) get(ctx context.Context, keys []string) (entries, error) {
	stored := make(entries, len(keys))
	for some := range slices.Chunk(keys, batch) {
		values, err := p.client.MGet(ctx, some...).Result()
		if err != nil {
			return nil, err
		}
		for i, value := range values {
			if text, ok := value.(string); ok {
				stored[some[i]] = text
			}
		}
	}
	return stored, nil
}

// quote returns the pattern that matches just s.
func quote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// anyCase returns a pattern that matches all that fold makes the label s, and more.
func anyCase(s string) string {
	var pattern strings.Builder
	for _, r := range s {
		switch {
		case r == 'k' || r == 's': // letters beyond ASCII fold to them
			pattern.WriteByte('*')
		case 'a' <= r && r <= 'z':
			fmt.Fprintf(&pattern, "[%c%c]", r, r-'a'+'A')
		default:
			pattern.WriteRune(r)
		}
	}
	return pattern.String()
}

// sentinel is an entry that is always there. Traefik takes no notice when the last of its keys is gone. It says something
// that nothing refers to.
func (p *Provider) sentinel() (key, value string) {
	return p.root + "/http/middlewares/" + p.mapping.Deployment + "/addPrefix/prefix", "/"
}

const notifications = "notify-keyspace-events"

// notify makes Redis tell of changed keys, and reports whether it had to.
func (p *Provider) notify(ctx context.Context) (restored bool, err error) {
	settings, err := p.client.ConfigGet(ctx, notifications).Result()
	if err == nil {
		flags := settings[notifications]
		if strings.Contains(flags, "K") && (strings.Contains(flags, "A") || strings.Contains(flags, "$") && strings.Contains(flags, "g")) {
			return false, nil
		}
		if err = p.client.ConfigSet(ctx, notifications, flags+"KA").Err(); err == nil {
			p.log.Info("turned on Redis' notifications of changed keys, which Traefik follows", "was", flags)
			return true, nil
		}
	}
	// Providers of Redis as a service forbid the command, and have the setting in a form of theirs.
	if reply := redis.Error(nil); errors.As(err, &reply) && !redis.IsAuthError(err) {
		p.log.Warn("can not see to it that Redis tells Traefik of changed keys; it has to be set there: "+notifications+" KA", "error", err)
		return false, nil
	}
	return false, err
}

// warnOfPoison looks for entries of others that Traefik can not read.
func (p *Provider) warnOfPoison(foreign entries) {
	// Each thing on its own: then it can be named, and Traefik's decoder takes a time that is the square of what it gets.
	things := make(map[string]entries)
	for key, value := range foreign {
		path := parts(p.path(key))
		if len(path) == 0 || !isRead(path[0]) || value == "" {
			continue
		}
		name := fold(strings.Join(path[:min(3, len(path))], "/"))
		if things[name] == nil {
			things[name] = make(entries)
		}
		things[name][key] = value
	}
	for _, name := range slices.Sorted(maps.Keys(things)) {
		if _, err := p.read(things[name]); err != nil {
			p.log.Warn("Traefik can not read keys that are not ours, and takes over no changes until they are gone",
				"keys", slices.Sorted(maps.Keys(things[name])), "error", err)
		}
	}
}

// sections are the parts of Traefik's configuration.
var sections = [...]string{"http", "tcp", "udp", "tls"}

// isRead reports whether Traefik reads keys that begin so. It takes "https" for a thing that it does not know.
func isRead(first string) bool {
	return slices.ContainsFunc(sections[:], func(section string) bool { return strings.HasPrefix(fold(first), section) })
}

// classed gives errors of Redis a class.
func classed(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case redis.IsAuthError(err), redis.IsPermissionError(err):
		return fmt.Errorf("redis: %w: %w", errdefs.ErrPermissionDenied, err)
	}
	return fmt.Errorf("redis: %w: %w", errdefs.ErrUnavailable, err)
}
