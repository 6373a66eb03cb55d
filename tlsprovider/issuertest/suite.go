package issuertest

import (
	"cmp"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Harness is an issuer with what stands behind it: its store, and who signs the certificates. Functions that are nil stand
// for what can not be. They are called by the test's goroutine.
type Harness struct {
	// Open returns a new issuer for the named deployment on the store, as a daemon does when it starts. The suite opens
	// several deployments at a time, but a deployment only again after it has called Close of the one before, if it is
	// an [io.Closer]. It closes all that it has opened.
	Open func(deployment string) (tlsprovider.Issuer, error)

	// Forgets says that there is no store, as with certificates that somebody else obtains: orders do not outlive their
	// issuer, and leave nothing behind.
	Forgets bool

	// Issue has the certificate of an ordered host come, now or soon. Nil: it is there from the beginning.
	Issue func(deployment string, host provider.Host) error
	// Fail has every attempt to obtain the certificate of a host fail, until Issue is called for it.
	Fail func(deployment string, host provider.Host) error
	// Away puts what an issuer needs out of reach. It returns what brings it back.
	Away func() (back func())

	// Writes returns how often the store was written so far.
	Writes func() int

	// WriteForeign writes what carries no deployment's mark, as like the named deployment's order of the host as the store
	// allows: under other names, and in the very place of the order where that can be.
	WriteForeign func(deployment string, host provider.Host) error
	// ReadForeign returns all that WriteForeign wrote, as it is now, byte for byte.
	ReadForeign func() ([]byte, error)
}

// Run checks an issuer against the documentation of [tlsprovider.Issuer], and against that of [tlsprovider.Watcher],
// [tlsprovider.Holder] and [tlsprovider.Challenger] where it implements them. newHarness is called for each subtest and
// returns a harness of an empty store; what it needs to clean up goes to t.Cleanup.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"Empty", (*suite).empty},
		{"OrderIssueCancel", (*suite).orderIssueCancel},
		{"Idempotent", (*suite).idempotent},
		{"Owner", (*suite).owner},
		{"Invalid", (*suite).invalid},
		{"Reopened", (*suite).reopened},
		{"Problem", (*suite).problem},
		{"Away", (*suite).away},
		{"Foreign", (*suite).foreign},
		{"Deployments", (*suite).deployments},
		{"Cancelled", (*suite).cancelled},
		{"Concurrent", (*suite).concurrent},
		{"Hosts", (*suite).hosts},
		{"Thousand", (*suite).thousand},
		{"Watch", (*suite).watch},
		{"Hold", (*suite).hold},
		{"Challenge", (*suite).challenge},
		{"Close", (*suite).close},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, Harness: newHarness(t), opened: map[string]tlsprovider.Issuer{}}
			defer func() {
				for _, issuer := range s.opened {
					s.shut(issuer)
				}
			}()
			test.run(s)
		})
	}
}

// suite is one subtest. Its deployment is "one" unless said otherwise.
type suite struct {
	*testing.T
	Harness
	opened map[string]tlsprovider.Issuer
}

// soon is how long what comes by itself may take.
const soon = 30 * time.Second

func (s *suite) open(deployment string) tlsprovider.Issuer {
	s.Helper()
	if before := s.opened[deployment]; before != nil {
		s.shut(before)
	}
	issuer, err := s.Open(deployment)
	require.NoError(s, err)
	s.opened[deployment] = issuer
	return issuer
}

func (s *suite) shut(issuer tlsprovider.Issuer) {
	s.Helper()
	if closer, ok := issuer.(io.Closer); ok {
		if err := closer.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
	}
}

func (s *suite) host(name string) provider.Host {
	s.Helper()
	host, err := provider.ParseHost(name)
	require.NoError(s, err)
	return host
}

func (s *suite) newOrder(host, owner string) tlsprovider.Order {
	s.Helper()
	order := tlsprovider.Order{Host: s.host(host), Owner: owner}
	require.NoError(s, order.Validate())
	return order
}

// order requires that the order is taken, and that what a route would refer to can be referred to.
func (s *suite) order(issuer tlsprovider.Issuer, order tlsprovider.Order) tlsprovider.Status {
	s.Helper()
	status, err := issuer.Order(s.Context(), order)
	require.NoErrorf(s, err, "order of %s", order.Host)
	if status.Certificate != (provider.Certificate{}) {
		require.Equal(s, order.Host, status.Certificate.Host)
		require.NoError(s, status.Certificate.Validate())
	}
	return status
}

func (s *suite) cancel(issuer tlsprovider.Issuer, hosts ...provider.Host) {
	s.Helper()
	for _, host := range hosts {
		require.NoErrorf(s, issuer.Cancel(s.Context(), host), "cancel %s", host)
	}
}

func byHost(a, b tlsprovider.Order) int {
	return cmp.Or(a.Host.Compare(b.Host), cmp.Compare(a.Owner, b.Owner))
}

// stands requires that these are all the orders.
func (s *suite) stands(issuer tlsprovider.Issuer, want ...tlsprovider.Order) {
	s.Helper()
	have, err := issuer.Orders(s.Context())
	require.NoError(s, err)
	have, want = slices.Clone(have), slices.Clone(want)
	slices.SortFunc(have, byHost)
	slices.SortFunc(want, byHost)
	require.Truef(s, slices.Equal(want, have), "orders: want %v, have %v", want, have)
}

// stillStands is stands after the issuer was opened again.
func (s *suite) stillStands(issuer tlsprovider.Issuer, want ...tlsprovider.Order) {
	s.Helper()
	if s.Forgets {
		s.stands(issuer)
		return
	}
	s.stands(issuer, want...)
}

// issued has the certificate of an order come.
func (s *suite) issued(issuer tlsprovider.Issuer, deployment string, order tlsprovider.Order) tlsprovider.Status {
	s.Helper()
	if s.Issue != nil {
		require.NoError(s, s.Issue(deployment, order.Host))
	}
	return s.has(issuer, order)
}

// has waits for the certificate of an order.
func (s *suite) has(issuer tlsprovider.Issuer, order tlsprovider.Order) tlsprovider.Status {
	s.Helper()
	return s.until(issuer, order, "a certificate without a problem", func(status tlsprovider.Status) bool {
		return status.Certificate != (provider.Certificate{}) && status.Problem == ""
	})
}

// until repeats the order until its status is as wanted.
func (s *suite) until(
	issuer tlsprovider.Issuer, order tlsprovider.Order, what string, wanted func(tlsprovider.Status) bool,
) tlsprovider.Status {
	s.Helper()
	status := s.order(issuer, order)
	for begin := time.Now(); !wanted(status); status = s.order(issuer, order) {
		require.Lessf(s, time.Since(begin), soon, "%s has not got %s: %v", order.Host, what, status)
		time.Sleep(10 * time.Millisecond)
	}
	return status
}
