package kubeports

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// claims is the annotation in which each deployment keeps the numbers of its ports, by the deployment's name. A port's name
// alone does not say whose it is.
const claims = "ports.webspaced/"

const namePrefix = "ws-fwd-"

func portName(number int) string { return namePrefix + strconv.Itoa(number) }

// parseName is the inverse of portName.
func parseName(name string) (int, bool) {
	text, _ := strings.CutPrefix(name, namePrefix)
	number, err := strconv.Atoi(text)
	return number, err == nil && 0 < number && number < 65536 && portName(number) == name
}

// service is what matters of a Service: its ports as the API server has them, and who claims which.
type service struct {
	ports  []any
	claims string       // ours, as it is written
	mine   map[int]bool // claims, read
	others map[int]bool // what other deployments claim
}

func readService(object *unstructured.Unstructured, deployment string) service {
	ports, _, _ := unstructured.NestedSlice(object.Object, "spec", "ports")
	s := service{ports: ports, mine: map[int]bool{}, others: map[int]bool{}}
	for key, value := range object.GetAnnotations() {
		whose, ok := strings.CutPrefix(key, claims)
		if !ok {
			continue
		}
		set := s.others
		if whose == deployment {
			set, s.claims = s.mine, value
		}
		for text := range strings.SplitSeq(value, ",") {
			if number, ok := parseName(namePrefix + text); ok {
				set[number] = true
			}
		}
	}
	return s
}

// change is what a Service should become.
type change struct {
	ports     []any
	claims    string
	carried   map[int]bool  // ports of ours that it has then
	conflicts map[int]error // ports that it can not have, by what is in their place
}

func (c change) isNone(s service) bool {
	return c.claims == s.claims && reflect.DeepEqual(c.ports, s.ports)
}

// plan makes a Service carry the desired ports beside those of others, which stay as they are and where they are:
//
//	name      claimed by   desired    then
//	ws-fwd-N  us           yes        stays, and is set right
//	ws-fwd-N  us           no         goes, unless complete is false: more may be desired than is known yet
//	ws-fwd-N  nobody       yes        becomes ours if it says just what we would write
//	-         -            yes        is added, unless another TCP port has the number or the name: a conflict
//	other     -            -          stays
//
// A Service can not be without ports: the last one of ours stays if there is no other.
func plan(s service, desired map[int]bool, complete bool) change {
	c := change{carried: map[int]bool{}, conflicts: map[int]error{}}
	numbers, names := map[int]bool{}, map[string]bool{} // that others have
	for _, p := range s.ports {
		if _, ok := s.ours(p, desired); !ok {
			names[text(p, "name")] = true
			if isTCP(p) {
				numbers[integer(p, "port")] = true
			}
		}
	}
	free := func(number int) bool {
		return !numbers[number] && !names[portName(number)] && !s.others[number] && !c.carried[number]
	}
	var last any
	for _, p := range s.ports {
		number, ours := s.ours(p, desired)
		switch {
		case !ours:
			c.ports = append(c.ports, p)
		case !free(number): // somebody has put theirs beside it
		case desired[number] || !complete:
			c.ports = append(c.ports, corrected(p, number))
			c.carried[number] = true
		default:
			last = corrected(p, number)
		}
	}
	for _, number := range slices.Sorted(maps.Keys(desired)) {
		switch {
		case c.carried[number]:
		case free(number):
			c.ports = append(c.ports, corrected(nil, number))
			c.carried[number] = true
		default:
			c.conflicts[number] = fmt.Errorf("the Service has a port of the same number or name that is somebody else's: %w", errdefs.ErrAlreadyExists)
		}
	}
	if len(c.ports) == 0 && last != nil {
		c.ports = append(c.ports, last)
		c.carried[integer(last, "port")] = true
	}
	var list []string
	for _, number := range slices.Sorted(maps.Keys(c.carried)) {
		list = append(list, strconv.Itoa(number))
	}
	c.claims = strings.Join(list, ",")
	return c
}

// ours returns the number that a port has in its name, if it is one of ours.
func (s service) ours(port any, desired map[int]bool) (int, bool) {
	number, ok := parseName(text(port, "name"))
	if !ok || s.others[number] {
		return 0, false
	}
	// nodePort and what else the API server adds is no difference.
	adopted := desired[number] && reflect.DeepEqual(port, corrected(port, number))
	return number, s.mine[number] || adopted
}

// corrected is a port as it should be. What we do not say, such as a nodePort, stays.
func corrected(port any, number int) map[string]any {
	fields, _ := port.(map[string]any)
	fields = maps.Clone(fields)
	if fields == nil {
		fields = map[string]any{}
	}
	fields["name"] = portName(number)
	fields["port"], fields["targetPort"] = int64(number), int64(number)
	fields["protocol"] = "TCP"
	return fields
}

func isTCP(port any) bool {
	protocol := text(port, "protocol")
	return protocol == "TCP" || protocol == ""
}

func text(port any, field string) string {
	fields, _ := port.(map[string]any)
	value, _ := fields[field].(string)
	return value
}

func integer(port any, field string) int {
	fields, _ := port.(map[string]any)
	value, _ := fields[field].(int64)
	return int(value)
}
