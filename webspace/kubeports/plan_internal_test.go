package kubeports

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func decodeService(t *testing.T, ports string, annotations map[string]string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	notes, err := json.Marshal(annotations)
	require.NoError(t, err)
	require.NoError(t, object.UnmarshalJSON(fmt.Appendf(nil,
		`{"apiVersion":"v1","kind":"Service","metadata":{"annotations":%s},"spec":{"ports":[%s]}}`, notes, ports)))
	return object
}

func set(numbers ...int) map[int]bool {
	s := map[int]bool{}
	for _, n := range numbers {
		s[n] = true
	}
	return s
}

func TestPlan(t *testing.T) {
	const (
		web   = `{"name":"web","nodePort":30080,"port":80,"protocol":"TCP","targetPort":"http"}`
		ours  = `{"name":"ws-fwd-50000","nodePort":31000,"port":50000,"protocol":"TCP","targetPort":50000}`
		fresh = `{"name":"ws-fwd-50001","port":50001,"protocol":"TCP","targetPort":50001}`
	)
	for _, test := range []struct {
		name         string
		ports        string
		mine, others string
		desired      map[int]bool
		incomplete   bool
		want         string
		claims       string
		conflicts    []int
	}{
		{name: "nothing to do", ports: web, want: web},
		{name: "added", ports: web, desired: set(50001), want: web + "," + fresh, claims: "50001"},
		{name: "stays", ports: web + "," + ours, mine: "50000", desired: set(50000), want: web + "," + ours, claims: "50000"},
		{name: "goes", ports: ours + "," + web, mine: "50000", want: web},
		{name: "stays until all is known", ports: ours + "," + web, mine: "50000", incomplete: true, want: ours + "," + web, claims: "50000"},
		{name: "added before all is known", ports: ours + "," + web, mine: "50000", desired: set(50001), incomplete: true,
			want: ours + "," + web + "," + fresh, claims: "50000,50001"},
		{name: "set right, with its node port", mine: "50000", desired: set(50000),
			ports: `{"name":"ws-fwd-50000","nodePort":31000,"port":50007,"protocol":"UDP","targetPort":22}`, want: ours, claims: "50000"},
		{name: "number taken", ports: `{"name":"game","port":50001,"protocol":"TCP","targetPort":1}`, desired: set(50001),
			want: `{"name":"game","port":50001,"protocol":"TCP","targetPort":1}`, conflicts: []int{50001}},
		{name: "number taken by UDP only", ports: `{"name":"game","port":50001,"protocol":"UDP","targetPort":1}`, desired: set(50001),
			want: `{"name":"game","port":50001,"protocol":"UDP","targetPort":1},` + fresh, claims: "50001"},
		{name: "name taken", ports: `{"name":"ws-fwd-50001","port":1,"protocol":"TCP","targetPort":1}`, desired: set(50001),
			want: `{"name":"ws-fwd-50001","port":1,"protocol":"TCP","targetPort":1}`, conflicts: []int{50001}},
		{name: "of our form, but not ours", ports: ours + "," + web, want: ours + "," + web},
		{name: "adopted", ports: ours + "," + web, desired: set(50000), want: ours + "," + web, claims: "50000"},
		{name: "another deployment's", ports: ours + "," + web, others: "50000", desired: set(50000), want: ours + "," + web,
			conflicts: []int{50000}},
		{name: "claimed by both", ports: ours, mine: "50000", others: "50000", want: ours},
		{name: "somebody put theirs beside it", mine: "50001", desired: set(50001),
			ports: `{"name":"game","port":50001,"protocol":"TCP","targetPort":1},{"name":"ws-fwd-50001","port":2,"protocol":"TCP","targetPort":2}`,
			want:  `{"name":"game","port":50001,"protocol":"TCP","targetPort":1}`, conflicts: []int{50001}},
		{name: "the last stays", ports: ours, mine: "50000", want: ours, claims: "50000"},
		{name: "the last goes with the next", ports: ours, mine: "50000", desired: set(50001), want: fresh, claims: "50001"},
		{name: "claims that are none", ports: web, mine: "0,x,-1,65536,050001,,", desired: set(50001), want: web + "," + fresh, claims: "50001"},
	} {
		t.Run(test.name, func(t *testing.T) {
			object := decodeService(t, test.ports, map[string]string{claims + "a": test.mine, claims + "b": test.others})
			have := readService(object, "a")
			c := plan(have, test.desired, !test.incomplete)
			got, err := json.Marshal(c.ports)
			require.NoError(t, err)
			require.Equal(t, "["+test.want+"]", string(got))
			require.Equal(t, test.claims, c.claims)
			require.ElementsMatch(t, test.conflicts, slices.Collect(maps.Keys(c.conflicts)))
			for _, err := range c.conflicts {
				require.True(t, errdefs.IsAlreadyExists(err))
			}
			again := service{ports: c.ports, claims: c.claims, mine: c.carried, others: have.others}
			require.True(t, plan(again, test.desired, !test.incomplete).isNone(again), "a second time changes something")
		})
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(`{"name":"web","port":80},{"name":"ws-fwd-3","port":3,"targetPort":3,"protocol":"TCP"}`, "3,4", "5", []byte{3, 4, 5}, true)
	f.Add(`{"port":1},7,null,{"name":"ws-fwd-1","port":2,"protocol":"UDP"},{"name":"ws-fwd-1","port":1}`, "1", "", []byte{1}, false)
	f.Fuzz(func(t *testing.T, ports, mine, others string, desired []byte, complete bool) {
		object := &unstructured.Unstructured{}
		if object.UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{},"spec":{"ports":[`+ports+`]}}`)) != nil {
			return
		}
		object.SetAnnotations(map[string]string{claims + "a": mine, claims + "b": others})
		want := map[int]bool{}
		for _, n := range desired {
			want[int(n)+1] = true
		}
		have := readService(object, "a")
		before, err := json.Marshal(have.ports)
		require.NoError(t, err)
		c := plan(have, want, complete)
		after, err := json.Marshal(have.ports)
		require.NoError(t, err)
		require.Equal(t, string(before), string(after), "what was read has been changed")

		// What is not ours is there as it was, in the same order.
		foreign := func(list []any, mine map[int]bool) string {
			var kept []string
			for _, p := range list {
				number, named := parseName(text(p, "name"))
				if named && !have.others[number] && mine[number] {
					continue
				}
				one, err := json.Marshal(p)
				require.NoError(t, err)
				kept = append(kept, string(one))
			}
			return strings.Join(kept, "\n")
		}
		ours := maps.Clone(have.mine)
		maps.Copy(ours, c.carried)
		require.Equal(t, foreign(have.ports, ours), foreign(c.ports, ours))
		for number := range want {
			require.True(t, c.carried[number] != (c.conflicts[number] != nil), "port %d is neither there nor told", number)
		}
		again := service{ports: c.ports, claims: c.claims, mine: c.carried, others: have.others}
		require.True(t, plan(again, want, complete).isNone(again), "a second time changes something")
	})
}
