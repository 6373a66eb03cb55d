package acme

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/tlsprovider"
)

// Whatever is in a file of a host, it makes a valid order or none, and nothing that is waited for longer than any failure is.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"host":"a.example.org","owner":"ws-u1","attempts":[{"at":"2026-01-01T00:00:00Z","owner":"ws-u1"}],"failures":3}`))
	f.Add([]byte(`{"host":"A.Example.ORG.","owner":"","next":"9999-01-01T00:00:00Z","problem":"a\nb"}`))
	f.Add([]byte(`{"host":"../../etc/passwd","owner":"ws-u1"}`))
	f.Add([]byte(`{"host":"a.example.org","chain":"-----BEGIN CERTIFICATE-----","key":"x"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := decode(content)
		if err != nil {
			return
		}
		if r.Owner != "" {
			require.NoError(t, tlsprovider.Order{Host: r.host, Owner: r.Owner}.Validate())
		}
		require.False(t, r.Next.After(time.Now().Add(maxWait)))
		require.LessOrEqual(t, len(r.Attempts), maxAttempts)
		require.NotContains(t, r.Problem, "\n")
		if r.pair() != nil {
			require.NoError(t, r.certificate().Validate())
		}
		again, err := json.Marshal(r)
		require.NoError(t, err)
		_, err = decode(again)
		require.NoError(t, err)
	})
}
