package issuertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

func (s *suite) empty() {
	issuer := s.open("one")
	s.stands(issuer)
	s.cancel(issuer, s.host("nobody.example.org"))
	s.stands(issuer)
}

func (s *suite) orderIssueCancel() {
	issuer := s.open("one")
	a, b := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u2")
	s.order(issuer, a)
	s.order(issuer, b)
	s.stands(issuer, a, b)
	s.issued(issuer, "one", a)
	s.issued(issuer, "one", b)
	s.stands(issuer, a, b)
	s.cancel(issuer, a.Host)
	s.stands(issuer, b)
	s.issued(issuer, "one", b)
	s.order(issuer, a)
	s.issued(issuer, "one", a)
	s.stands(issuer, a, b)
	s.cancel(issuer, a.Host, b.Host, a.Host, b.Host)
	s.stands(issuer)
}

func (s *suite) idempotent() {
	issuer := s.open("one")
	a := s.newOrder("a.example.org", "ws-u1")
	s.order(issuer, a)
	first := s.issued(issuer, "one", a)
	writes := 0
	if s.Writes != nil {
		writes = s.Writes()
	}
	for range 20 {
		require.Equal(s, first, s.order(issuer, a))
	}
	s.stands(issuer, a)
	if s.Writes != nil {
		require.Equal(s, writes, s.Writes(), "an order that stands is written again")
	}
}

func (s *suite) owner() {
	issuer := s.open("one")
	first, second := s.newOrder("a.example.org", "ws-u1"), s.newOrder("a.example.org", "ws-u2")
	s.order(issuer, first)
	s.order(issuer, second)
	s.stands(issuer, second)
	s.issued(issuer, "one", second)
	s.order(issuer, first)
	s.stands(issuer, first)
	s.stillStands(s.open("one"), first)
}

func (s *suite) invalid() {
	issuer := s.open("one")
	a := s.newOrder("a.example.org", "ws-u1")
	s.order(issuer, a)
	for _, bad := range []tlsprovider.Order{
		{},
		{Owner: "ws-u1"},
		{Host: s.host("b.example.org")},
		{Host: s.host("b.example.org"), Owner: "ws_u1"},
		{Host: s.host("b.example.org"), Owner: "../ws-u1"},
		{Host: s.host("b.example.org"), Owner: "WS-U1"},
		{Host: s.host("a.example.org"), Owner: "a\nb"},
	} {
		status, err := issuer.Order(s.Context(), bad)
		require.Truef(s, errdefs.IsInvalidArgument(err), "order %q: %v", bad, err)
		require.Zero(s, status)
	}
	s.cancel(issuer, provider.Host{})
	s.stands(issuer, a)
}

func (s *suite) reopened() {
	issuer := s.open("one")
	a, b, c := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u1"), s.newOrder("c.example.org", "ws-u2")
	for _, order := range []tlsprovider.Order{a, b, c} {
		s.order(issuer, order)
	}
	before := s.issued(issuer, "one", a)
	s.cancel(issuer, b.Host)
	s.stands(issuer, a, c)

	issuer = s.open("one")
	s.stillStands(issuer, a, c)
	require.Equal(s, before, s.has(issuer, a), "a certificate that was there is another after a restart")
	s.order(issuer, c)
	s.stands(issuer, a, c)
	s.issued(issuer, "one", c)
	s.cancel(issuer, a.Host)
	s.stillStands(s.open("one"), c)
}

func (s *suite) problem() {
	if s.Fail == nil {
		s.Skip("no attempt fails")
	}
	issuer := s.open("one")
	bad, good := s.newOrder("bad.example.org", "ws-u1"), s.newOrder("good.example.org", "ws-u2")
	require.NoError(s, s.Fail("one", bad.Host))
	s.order(issuer, bad)
	status := s.until(issuer, bad, "a problem", func(status tlsprovider.Status) bool { return status.Problem != "" })
	require.NotContains(s, status.Problem, "\n", "a problem is told in one line")
	s.order(issuer, good)
	s.issued(issuer, "one", good) // one domain with trouble takes no other down
	s.stands(issuer, bad, good)
	s.issued(issuer, "one", bad)
	s.cancel(issuer, bad.Host)
	s.stands(issuer, good)
}

func (s *suite) away() {
	if s.Away == nil {
		s.Skip("it is always there")
	}
	issuer := s.open("one")
	a, b := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u1")
	s.order(issuer, a)
	s.issued(issuer, "one", a)
	back := s.Away()

	ctx, cancel := context.WithTimeout(s.Context(), soon)
	defer cancel()
	_, orderErr := issuer.Order(ctx, b)
	orders, listErr := issuer.Orders(ctx)
	require.NoError(s, ctx.Err(), "a call ends before its caller has lost patience")
	for _, err := range []error{orderErr, listErr} {
		require.Truef(s, err == nil || errdefs.IsUnavailable(err), "while it is away: %v", err)
	}
	if listErr == nil {
		require.Contains(s, orders, a, "an order is lost while it is away")
	}
	back()
	s.order(issuer, b)
	s.issued(issuer, "one", b)
	s.stands(issuer, a, b)
}

func (s *suite) foreign() {
	if s.WriteForeign == nil {
		s.Skip("there is no place for anything else")
	}
	issuer := s.open("one")
	a, b := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u1")
	s.order(issuer, b)
	require.NoError(s, s.WriteForeign("one", a.Host))
	before, err := s.ReadForeign()
	require.NoError(s, err)
	require.NotEmpty(s, before)

	s.stands(issuer, b)
	if _, err := issuer.Order(s.Context(), a); err == nil {
		s.stands(issuer, a, b) // what is foreign is in nobody's way
	} else {
		require.Truef(s, errdefs.IsAlreadyExists(err), "%v", err)
		s.stands(issuer, b)
	}
	s.cancel(issuer, a.Host)
	s.stands(issuer, b)
	s.stillStands(s.open("one"), b)

	after, err := s.ReadForeign()
	require.NoError(s, err)
	require.Equal(s, string(before), string(after), "what is foreign was changed")
}

func (s *suite) deployments() {
	// Names that begin alike, and pairs that a careless separator makes one.
	names := []string{"one", "one-a", "on"}
	issuers, orders := map[string]tlsprovider.Issuer{}, map[string]tlsprovider.Order{}
	for i, name := range names {
		issuers[name] = s.open(name)
		orders[name] = s.newOrder("a.example.org", "ws-u"+string(rune('1'+i)))
		s.order(issuers[name], orders[name])
	}
	second := s.newOrder("b.example.org", "ws-u9")
	s.order(issuers["one-a"], second)

	s.stands(issuers["one"], orders["one"])
	s.cancel(issuers["one"], orders["one"].Host, second.Host, s.host("a.b.example.org"), s.host("a-b.example.org"))
	s.stands(issuers["one"])
	s.stands(issuers["on"], orders["on"])
	s.stands(issuers["one-a"], orders["one-a"], second)
	s.issued(issuers["on"], "on", orders["on"])
}

func (s *suite) cancelled() {
	issuer := s.open("one")
	a, b := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u1")
	s.order(issuer, a)
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, err := issuer.Order(ctx, b)
	require.ErrorIs(s, err, context.Canceled)
	require.ErrorIs(s, issuer.Cancel(ctx, a.Host), context.Canceled)
	_, err = issuer.Orders(ctx)
	require.ErrorIs(s, err, context.Canceled)
	s.stands(issuer, a)
	s.order(issuer, b)
	s.stands(issuer, a, b)
}

func (s *suite) concurrent() {
	issuer := s.open("one")
	var want []tlsprovider.Order
	var wg sync.WaitGroup
	for i := range 8 {
		order := s.newOrder(fmt.Sprintf("h%d.example.org", i), fmt.Sprintf("ws-u%d", i%2))
		want = append(want, order)
		// Calls for one host come one after the other, those for different hosts overlap.
		wg.Go(func() {
			for range 5 {
				_, orderErr := issuer.Order(s.Context(), order)
				cancelErr := issuer.Cancel(s.Context(), order.Host)
				_, againErr := issuer.Order(s.Context(), order)
				_, listErr := issuer.Orders(s.Context())
				if err := errors.Join(orderErr, cancelErr, againErr, listErr); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.stands(issuer, want...)
	s.stillStands(s.open("one"), want...)
}

// hosts has the longest names, those that look like something else to a careless reader, and those that a careless writer
// takes for one another.
func (s *suite) hosts() {
	long := strings.Repeat("a", 63)
	name := strings.Join([]string{long, long, long, strings.Repeat("b", 61)}, ".")
	require.Len(s, name, 253)
	names := []string{
		name, strings.Join([]string{long, long, long, strings.Repeat("b", 60)}, "."), "xn--bcher-kva.example.org", "xn--80ak6aa92e.com",
		"0.example", "1e3.example", "0x1f.example", "00.org", "true.example", "null.example", "no.example", "y.no", "con.example", "aux.org",
		"a--b.example", "a-b.example", "a.b.example", "1-2-3-4.example", "127-0-0-1.example", "x.json", "x.key", "a.tmp", "a.lock",
		"acme-challenge.example", "wildcard.example", "www.a-b.example", "www-a.b.example",
	}
	issuer := s.open("one")
	var want []tlsprovider.Order
	for _, name := range names {
		order := s.newOrder(name, "ws-u1")
		want = append(want, order)
		s.order(issuer, order)
	}
	owners := []string{long, "0", "1e3", "null", "a--b"}
	for i, owner := range owners {
		order := s.newOrder(fmt.Sprintf("h%d.example.net", i), owner)
		want = append(want, order)
		s.order(issuer, order)
	}
	s.stands(issuer, want...)
	for _, order := range want[:2] {
		s.issued(issuer, "one", order)
	}
	issuer = s.open("one")
	s.stillStands(issuer, want...)
	for _, order := range want {
		s.cancel(issuer, order.Host)
	}
	s.stands(issuer)
}

func (s *suite) thousand() {
	issuer := s.open("one")
	var all []tlsprovider.Order
	for i := range 1000 {
		order := s.newOrder(fmt.Sprintf("h%d.example.org", i), fmt.Sprintf("ws-u%d", i/20))
		all = append(all, order)
		s.order(issuer, order)
	}
	s.stands(issuer, all...)
	issuer = s.open("one")
	s.stillStands(issuer, all...)
	for _, order := range all {
		s.order(issuer, order)
	}
	for _, order := range all[10:] {
		s.cancel(issuer, order.Host)
	}
	s.stands(issuer, all[:10]...)
}
