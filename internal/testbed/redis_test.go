package testbed_test

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

func TestRedis(t *testing.T) {
	r := testbed.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	ask := func(command string) string {
		conn, err := net.DialTimeout("tcp", r.Address, 5*time.Second)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		fmt.Fprint(conn, command+"\r\n")
		answer, err := bufio.NewReader(conn).ReadString('\n')
		require.NoError(t, err)
		return answer
	}
	require.Equal(t, "+OK\r\n", ask("SET a 1"))
	address := r.Address
	r.Restart(t)
	require.Equal(t, address, r.Address)
	require.Equal(t, ":1\r\n", ask("EXISTS a"))
	r.Kill()
	_, err := net.DialTimeout("tcp", r.Address, 5*time.Second)
	require.Error(t, err)
	r.Restart(t)
	require.Equal(t, "+PONG\r\n", ask("PING"))
}
