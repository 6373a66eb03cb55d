package testbed_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// Ports are not those that Linux gives to others, nor given away twice soon.
func TestAddresses(t *testing.T) {
	seen := map[string]bool{}
	for range 10 {
		for _, address := range testbed.Addresses(t, 10) {
			require.False(t, seen[address], address)
			seen[address] = true
			l, err := net.Listen("tcp", address)
			require.NoError(t, err)
			defer l.Close()
			require.Less(t, l.Addr().(*net.TCPAddr).Port, 32768)
		}
	}
}
