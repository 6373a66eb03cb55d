package runtimetest

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

var recordTests = []subtest{
	{"Record", testRecord},
	{"RecordIsACopy", testRecordIsACopy},
	{"RecordStays", testRecordStays},
	{"Revision", testRevision},
	{"RevisionRace", testRevisionRace},
	{"RecordIncrements", testRecordIncrements},
}

// setRecord replaces the record whatever it is.
func (s *suite) setRecord(name, record string) {
	s.Helper()
	s.ok("SetRecord", func() error { return s.rt.SetRecord(s.ctx, name, []byte(record), "") })
}

func testRecord(s *suite) {
	records := []string{
		`{"user":1000,"unknown":{"deeply":[1,2.50,null]},"z":1,"a":2}`,
		" {\n\t\"spaces\" : true } \r\n\n",
		`"Grüße, 世界 🚀 \u00fc é"`,
		"not JSON: {{ ${x} %s %2F \\ \" ' ` <a&b>",
		strings.Repeat("0123456789abcde\n", 2<<10), // 32 KiB
	}
	for _, record := range records[:2] {
		require.Equal(s, record, string(s.get(s.create(record)).Record), "Create")
	}
	name := s.create("")
	require.Empty(s, s.get(name).Record)
	for _, record := range records {
		s.setRecord(name, record)
		require.Equal(s, record, string(s.get(name).Record), "Get")
		require.Equal(s, record, string(s.list(name)[name].Record), "List")
	}
	s.ok("SetRecord", func() error { return s.rt.SetRecord(s.ctx, name, nil, "") })
	require.Empty(s, s.get(name).Record)
}

func testRecordIsACopy(s *suite) {
	name, record := s.name(), []byte("original")
	s.ok("Create", func() error {
		return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: s.h.Image, Record: record})
	})
	record[0] = 'X'
	read := s.get(name).Record
	require.Equal(s, "original", string(read))
	read[0] = 'X'
	s.list(name)[name].Record[0] = 'X'
	require.Equal(s, "original", string(s.get(name).Record))
	record = []byte("replaced")
	s.ok("SetRecord", func() error { return s.rt.SetRecord(s.ctx, name, record, "") })
	record[0] = 'X'
	require.Equal(s, "replaced", string(s.get(name).Record))
}

func testRecordStays(s *suite) {
	name, other := s.create("one"), s.create("other")
	s.start(name)
	require.Equal(s, "one", string(s.get(name).Record))
	s.setRecord(name, "two")
	require.Equal(s, "two", string(s.get(name).Record))
	s.stop(name)
	require.Equal(s, "two", string(s.get(name).Record))
	require.Equal(s, "other", string(s.get(other).Record))
}

func testRevision(s *suite) {
	name := s.create("one")
	stale := s.get(name).Revision
	require.NotEmpty(s, stale)
	// A loop, for the revision may change for other reasons.
	s.ok("SetRecord", func() error { return s.rt.SetRecord(s.ctx, name, []byte("two"), s.get(name).Revision) })
	require.Equal(s, "two", string(s.get(name).Record))
	require.NotEqual(s, stale, s.get(name).Revision, "a new record has a new revision")

	// Not retried: Conflict is the answer.
	for _, revision := range []string{stale, "no such revision"} {
		err := s.rt.SetRecord(s.ctx, name, []byte("three"), revision)
		require.Error(s, err, "revision %q", revision)
		require.True(s, errdefs.IsConflict(err), "revision %q: the error is of another class: %v", revision, err)
		require.Equal(s, "two", string(s.get(name).Record), "nothing is changed")
	}
	s.setRecord(name, "four")
	require.Equal(s, "four", string(s.get(name).Record), "no revision stands for any")
}

// testRevisionRace has writers with one and the same revision: not more than one of them may succeed.
func testRevisionRace(s *suite) {
	name := s.create("start")
	for round := range 3 {
		before := s.get(name)
		errs := make([]error, 8)
		var group sync.WaitGroup
		for n := range errs {
			group.Go(func() {
				errs[n] = s.rt.SetRecord(s.ctx, name, fmt.Appendf(nil, "%d by %d", round, n), before.Revision)
			})
		}
		group.Wait()
		want := string(before.Record)
		won := 0
		for n, err := range errs {
			if err == nil {
				won++
				want = fmt.Sprintf("%d by %d", round, n)
			} else {
				require.True(s, errdefs.IsConflict(err), "the error is of another class: %v", err)
			}
		}
		require.LessOrEqual(s, won, 1, "writers that succeeded with one revision")
		require.Equal(s, want, string(s.get(name).Record))
	}
}

// testRecordIncrements counts in the record, several at once: read, write with the revision, again after Conflict.
func testRecordIncrements(s *suite) {
	const writers, each = 5, 4
	name := s.create("0")
	var failed atomic.Pointer[error]
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				err := s.retry(s.ctx, func() error {
					i, err := s.rt.Get(s.ctx, name)
					if err != nil {
						return err
					}
					count, err := strconv.Atoi(string(i.Record))
					if err != nil {
						return err
					}
					return s.rt.SetRecord(s.ctx, name, []byte(strconv.Itoa(count+1)), i.Revision)
				})
				if err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	group.Wait()
	if err := failed.Load(); err != nil {
		require.NoError(s, *err)
	}
	require.Equal(s, strconv.Itoa(writers*each), string(s.get(name).Record), "no increment is lost")
}
