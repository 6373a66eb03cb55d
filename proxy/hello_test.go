package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// script is a connection on which all is there, to be read in pieces.
type script struct {
	net.Conn
	rest   []byte
	pieces []byte // sizes of reads, again and again
	turn   int
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if len(s.pieces) > 0 {
		n = 1 + int(s.pieces[s.turn%len(s.pieces)])
		s.turn++
	}
	n = copy(p[:min(n, len(p))], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// split makes records of a handshake message.
func split(message, pieces []byte) []byte {
	var all []byte
	for turn := 0; len(message) > 0; turn++ {
		n := 1 << 14
		if len(pieces) > 0 {
			n = 1 + 8*int(pieces[turn%len(pieces)])
		}
		part := message[:min(n, len(message))]
		message = message[len(part):]
		all = append(append(all, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return all
}

func firstMessage(t testing.TB, config *tls.Config) []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() { _ = tls.Client(client, config).Handshake(); client.Close() }()
	header := make([]byte, 5)
	_, err := io.ReadFull(server, header)
	require.NoError(t, err)
	message := make([]byte, int(header[3])<<8|int(header[4]))
	_, err = io.ReadFull(server, message)
	require.NoError(t, err)
	return message
}

// FuzzClientHello splits a message into records and reads, and compares what is read of it with what a server of crypto/tls
// that gets it in one piece makes of it.
func FuzzClientHello(f *testing.F) {
	hello := firstMessage(f, &tls.Config{ServerName: "alice.test", NextProtos: []string{"h2", "http/1.1"}})
	f.Add(hello, []byte{}, []byte{})
	f.Add(hello, []byte{5, 0, 30}, []byte{0})
	f.Add(firstMessage(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS10, MinVersion: tls.VersionTLS10}), []byte{9}, []byte{1, 200})
	f.Add([]byte{1, 0, 0x3f, 0xff, 3, 3}, []byte{}, []byte{})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{}, []byte{3})
	f.Fuzz(func(t *testing.T, message, cuts, reads []byte) {
		if len(message) > 1<<14 {
			return
		}
		var want *tls.ClientHelloInfo
		enough := errors.New("enough")
		_ = tls.Server(&script{rest: split(message, nil)}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			want = info
			return nil, enough
		}}).Handshake()

		sent := append(split(message, cuts), "what follows"...)
		conn := &script{rest: sent, pieces: reads}
		got, err := readHello(conn, time.Second)
		read := len(sent) - len(conn.rest)
		require.LessOrEqual(t, read, maxHello)
		require.True(t, bytes.Equal(sent[:read], got.bytes), "the bytes are replayed as they were")
		switch {
		case want != nil && len(sent) <= maxHello:
			require.NoError(t, err)
			require.Equal(t, want.ServerName, got.serverName)
			require.Equal(t, want.SupportedProtos, got.protocols)
		case want == nil:
			require.Error(t, err)
		}

		// And just these bytes, which are no records.
		conn = &script{rest: message, pieces: reads}
		got, err = readHello(conn, time.Second)
		require.True(t, bytes.Equal(message[:len(message)-len(conn.rest)], got.bytes))
		if err != nil {
			require.IsType(t, &helloError{}, err)
		}
	})
}

// Spellings and extensions that browsers and odd clients use.
func TestReadHello(t *testing.T) {
	plain := firstMessage(t, &tls.Config{ServerName: "Alice.TEST", NextProtos: []string{"h2", "acme-tls/1"}})
	for name, test := range map[string]struct {
		bytes  []byte
		reason string
	}{
		"plain":          {split(plain, nil), ""},
		"tiny records":   {split(plain, []byte{1}), ""},
		"grease":         {split(withExtension(plain, 0x3a3a, []byte{0}), nil), ""},
		"ECH":            {split(withExtension(plain, 0xfe0d, ech()), nil), ""},
		"two names":      {split(bytes.Replace(plain, name("Alice.TEST"), append(name("Al"), name("ice.T")...), 1), nil), helloMalformed},
		"trailing dot":   {split(bytes.Replace(plain, []byte("Alice.TEST"), []byte("Alice.TES."), 1), nil), helloMalformed},
		"HTTP":           {[]byte("GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n"), helloMalformed},
		"SSL 2":          {append([]byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10}, make([]byte, 40)...), helloMalformed},
		"cut off":        {split(plain, nil)[:50], helloGone},
		"nothing":        {nil, helloGone},
		"without end":    {split(append([]byte{1, 0, 0x80, 0}, make([]byte, 1<<15)...), nil), helloLong},
		"a ServerHello":  {split(append([]byte{2}, plain[1:]...), nil), helloMalformed},
		"empty records":  {bytes.Repeat([]byte{22, 3, 1, 0, 0}, 100), helloMalformed},
		"an alert first": {append([]byte{21, 3, 1, 0, 2, 1, 0}, split(plain, nil)...), helloMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readHello(&script{rest: test.bytes}, time.Second)
			if test.reason == "" {
				require.NoError(t, err)
				require.Equal(t, "Alice.TEST", got.serverName)
				require.Equal(t, []string{"h2", "acme-tls/1"}, got.protocols)
				return
			}
			bad, ok := errors.AsType[*helloError](err)
			require.True(t, ok)
			require.Equal(t, test.reason, bad.reason, "%v", err)
		})
	}
}

// name is one of the list of server names.
func name(s string) []byte { return append([]byte{0, 0, byte(len(s))}, s...) }

// ech is an extension of an encrypted hello for a key that nobody here has.
func ech() []byte {
	return append([]byte{0, 0, 1, 0, 1, 7, 0, 32}, append(make([]byte, 32), 0, 4, 1, 2, 3, 4)...)
}

// withExtension returns a hello with one more extension.
func withExtension(message []byte, id int, data []byte) []byte {
	at := 4 + 2 + 32
	at += 1 + int(message[at])
	at += 2 + int(message[at])<<8 + int(message[at+1])
	at += 1 + int(message[at])
	changed := append(bytes.Clone(message), byte(id>>8), byte(id), byte(len(data)>>8), byte(len(data)))
	changed = append(changed, data...)
	extensions, all := len(changed)-at-2, len(changed)-4
	changed[at], changed[at+1] = byte(extensions>>8), byte(extensions)
	changed[2], changed[3] = byte(all>>8), byte(all)
	return changed
}

func BenchmarkClientHello(b *testing.B) {
	bytes := split(firstMessage(b, &tls.Config{ServerName: "alice.test", NextProtos: []string{"h2", "http/1.1"}}), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readHello(&script{rest: bytes}, time.Second); err != nil {
			b.Fatal(err)
		}
	}
}

// readProxyHeader reads exactly the header.
func FuzzProxyHeader(f *testing.F) {
	for _, addresses := range [][2]net.Addr{
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 2}},
		{&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1}, &net.TCPAddr{IP: net.ParseIP("2001:db8::2"), Port: 2}},
		{nil, nil},
	} {
		header, err := proxyHeader(addresses[0], addresses[1])
		require.NoError(f, err)
		f.Add(header, []byte("data"))
	}
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), []byte("\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"), []byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{})
	f.Fuzz(func(t *testing.T, header, data []byte) {
		alone := bytes.NewReader(header)
		first, err := readProxyHeader(alone)
		read := len(header) - alone.Len()
		require.LessOrEqual(t, read, 16+maxProxyHeader)
		if err != nil || alone.Len() > 0 {
			return
		}
		// What follows a header is not touched, and changes nothing.
		both := bytes.NewReader(append(bytes.Clone(header), data...))
		again, err := readProxyHeader(both)
		require.NoError(t, err)
		require.Equal(t, len(data), both.Len())
		require.True(t, first.EqualsTo(again))
	})
}
