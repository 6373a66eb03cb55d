package webspace

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

var testDefaults = Config{StartupDelay: 3 * time.Second, HTTPPort: 80}

func decode(data string) (record, error) {
	return decodeRecord([]byte(data), "ws-u1000", 1000, testDefaults)
}

func TestRecordRoundTrip(t *testing.T) {
	const data = `{
		"user": 1000, "instance": "ws-u1000", "domains": ["a.example.org", "b.example.org"], "ports": {"60022": 22, "49152": 1},
		"config": {"startupDelay": 1.25, "httpPort": 8080, "sniPassthrough": true, "http2": {"x": [1, "<&>", null]}, "HTTPPort": 1},
		"Future": {"a": 1}, "note": null, "User": 7, "username": "alice"
	}`
	r, err := decode(data)
	require.NoError(t, err)
	require.Equal(t, Webspace{
		User:    1000,
		Config:  Config{StartupDelay: 1250 * time.Millisecond, HTTPPort: 8080, SNIPassthrough: true},
		Domains: []string{"a.example.org", "b.example.org"},
		Ports:   map[int]int{60022: 22, 49152: 1},
	}, r.Webspace)
	require.Equal(t, "ws-u1000", r.Instance)
	require.Equal(t, "alice", r.Username)
	require.False(t, r.Creating)
	encoded, err := r.encode()
	require.NoError(t, err)
	require.JSONEq(t, data, string(encoded))

	r.Creating = true
	encoded, err = r.encode()
	require.NoError(t, err)
	r, err = decode(string(encoded))
	require.NoError(t, err)
	require.True(t, r.Creating)
}

func TestRecordOf2021(t *testing.T) {
	r, err := decode(`{"user":1000,"config":{"startupDelay":5,"httpPort":80,"sniPassthrough":false},"domains":[],"ports":{"60022":22}}`)
	require.NoError(t, err)
	require.Equal(t, 5*time.Second, r.Config.StartupDelay)
	require.Equal(t, map[int]int{60022: 22}, r.Ports)

	for _, data := range []string{`{"user":1000}`, `{"user":1000,"config":null,"domains":null,"ports":null,"instance":null}`, `{"user":1000,"config":{"httpPort":null}}`} {
		r, err = decode(data)
		require.NoError(t, err, data)
		require.Equal(t, testDefaults, r.Config)
		require.Empty(t, r.Domains)
		require.NotNil(t, r.Ports)
	}
}

func TestBadRecords(t *testing.T) {
	bad := map[string]string{
		"empty":                   ``,
		"null":                    `null`,
		"list":                    `[]`,
		"text":                    `"hello"`,
		"cut off":                 `{"user":1000`,
		"two":                     `{"user":1000}{}`,
		"no user":                 `{}`,
		"other user":              `{"user":1001}`,
		"user in another case":    `{"USER":1000}`,
		"user of the last key":    `{"user":1000,"user":1}`,
		"user as text":            `{"user":"1000"}`,
		"user as fraction":        `{"user":1000.5}`,
		"user overflows":          `{"user":18446744073709552616}`,
		"copied":                  `{"user":1000,"instance":"ws-u1001"}`,
		"instance as number":      `{"user":1000,"instance":1}`,
		"creating as text":        `{"user":1000,"creating":"yes"}`,
		"config as list":          `{"user":1000,"config":[]}`,
		"port as text":            `{"user":1000,"config":{"httpPort":"80"}}`,
		"port 0":                  `{"user":1000,"config":{"httpPort":0}}`,
		"port too high":           `{"user":1000,"config":{"httpPort":65536}}`,
		"delay below 0":           `{"user":1000,"config":{"startupDelay":-1}}`,
		"delay of centuries":      `{"user":1000,"config":{"startupDelay":1e300}}`,
		"delay beyond numbers":    `{"user":1000,"config":{"startupDelay":1e999}}`,
		"delay as text":           `{"user":1000,"config":{"startupDelay":"3s"}}`,
		"domains as text":         `{"user":1000,"domains":"a.example.org"}`,
		"domain as number":        `{"user":1000,"domains":[1]}`,
		"external port 0":         `{"user":1000,"ports":{"0":22}}`,
		"external port sign":      `{"user":1000,"ports":{"+60022":22}}`,
		"external port spelling":  `{"user":1000,"ports":{"060022":22}}`,
		"external port name":      `{"user":1000,"ports":{"ssh":22}}`,
		"internal port too high":  `{"user":1000,"ports":{"60022":65536}}`,
		"internal port null":      `{"user":1000,"ports":{"60022":null}}`,
		"internal port fraction":  `{"user":1000,"ports":{"60022":22.5}}`,
		"ports as list":           `{"user":1000,"ports":[22]}`,
		"too large":               `{"user":1000,"note":"` + strings.Repeat("x", maxRecord) + `"}`,
		"too deep":                `{"user":1000,"note":` + strings.Repeat("[", 15000) + strings.Repeat("]", 15000) + `}`,
		"sni passthrough as text": `{"user":1000,"config":{"sniPassthrough":"no"}}`,
	}
	for name, data := range bad {
		t.Run(name, func(t *testing.T) {
			r, err := decode(data)
			require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
			require.Equal(t, record{}, r)
			require.Less(t, len(err.Error()), 400)
		})
	}
	_, err := decodeRecord(nil, "ws-u1000", 1000, testDefaults)
	require.ErrorContains(t, err, "not made by webspaced")
}

func TestRecordThatGrowsTooLarge(t *testing.T) {
	r, err := decode(`{"user":1000}`)
	require.NoError(t, err)
	for i := range 2000 {
		r.Domains = append(r.Domains, fmt.Sprintf("a%d.example.org", i))
	}
	_, err = r.encode()
	require.True(t, errdefs.IsResourceExhausted(err))
}

func FuzzRecord(f *testing.F) {
	for _, seed := range []string{
		`{"user":1000}`, `null`, `{"user":1000,"instance":"ws-u1000","creating":true}`,
		`{"user":1000,"config":{"startupDelay":0.1,"httpPort":80,"x":1},"domains":["a.b"],"ports":{"60022":22},"y":{}}`,
		`{"user":1000,"config":{"startupDelay":86399.999999999}}`, `{"user":1000,"domains":["\ud800\u2028<>"],"":0}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data, "ws-u1000", 1000, testDefaults)
		if err != nil {
			require.True(t, errdefs.IsFailedPrecondition(err))
			return
		}
		require.EqualValues(t, 1000, r.User)
		encoded, err := r.encode()
		if err != nil {
			require.True(t, errdefs.IsResourceExhausted(err))
			return
		}
		require.True(t, json.Valid(encoded))
		again, err := decodeRecord(encoded, "ws-u1000", 1000, testDefaults)
		require.NoError(t, err, "%s", encoded)
		require.Equal(t, r.Config, again.Config)
		require.Equal(t, r.Ports, again.Ports)
		require.Equal(t, len(r.extra), len(again.extra))
		twice, err := again.encode()
		require.NoError(t, err)
		require.Equal(t, string(encoded), string(twice))
	})
}
