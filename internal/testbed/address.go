package testbed

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// ports are those that this process gives away: a block of its own below those that Linux takes for connections and for who
// asks for any port. Otherwise somebody takes one before it is listened on, once in some hundred times with many at work.
var ports struct {
	sync.Mutex
	holder net.Listener // at the first of them, so that no other process gives these away
	first  int
	next   int
}

const (
	firstPort  = 20000
	blockSize  = 256
	blockCount = 49
)

// Addresses returns n addresses on the loopback whose ports nobody listens on. Nobody else is given them soon.
func Addresses(t testing.TB, n int) []string {
	t.Helper()
	addresses, err := freeAddresses(n)
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}

func freeAddresses(n int) ([]string, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.holder == nil {
		if err := takePorts(); err != nil {
			return nil, err
		}
	}
	var addresses []string
	for range blockSize - 1 {
		ports.next = ports.next%(blockSize-1) + 1
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", ports.first+ports.next))
		if err != nil {
			continue // in use
		}
		addresses = append(addresses, l.Addr().String())
		if err := l.Close(); err != nil {
			return nil, err
		}
		if len(addresses) == n {
			return addresses, nil
		}
	}
	return nil, fmt.Errorf("there are no %d ports that nobody listens on", n)
}

// takePorts finds a block that no other process has.
func takePorts() error {
	for _, block := range rand.Perm(blockCount) {
		first := firstPort + block*blockSize
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", first)); err == nil {
			ports.holder, ports.first = l, first
			return nil
		}
	}
	return errors.New("all ports for tests are taken")
}
