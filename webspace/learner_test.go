package webspace_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// forgetful is a directory that can ask nobody: it knows whom it has seen since it was made, and whom it was told of.
type forgetful struct {
	*people
	mu      sync.Mutex
	learned map[identity.UserID]string
}

func newForgetful() *forgetful {
	return &forgetful{people: &people{users: map[identity.UserID]identity.User{}}, learned: map[identity.UserID]string{}}
}

func (f *forgetful) Learn(id identity.UserID, username string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learned[id] = username
}

func (f *forgetful) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	if u, err := f.people.ByID(ctx, id); err == nil {
		return u, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if name := f.learned[id]; name != "" {
		return identity.User{ID: id, Username: name}, nil
	}
	return identity.User{}, fmt.Errorf("never seen: %w", errdefs.ErrUnavailable)
}

func recordedName(t *testing.T, i webspace.Instance) any {
	var r map[string]any
	require.NoError(t, json.Unmarshal(i.Record, &r))
	return r["username"]
}

// forgetName makes a record what it was in 2021.
func forgetName(t *testing.T, w *world, name string) {
	var r map[string]any
	require.NoError(t, json.Unmarshal(w.instance(name).Record, &r))
	delete(r, "username")
	data, err := json.Marshal(r)
	require.NoError(t, err)
	require.NoError(t, w.runtime.SetRecord(t.Context(), name, data, ""))
}

// A directory that is away is no reason to forget names, even without routes that tell them.
func TestUsernamesSurviveWhileTheDirectoryIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.Provider = nil })
		name := w.create(1000)
		w.settled()
		w.users.add(1000, "Alicia")
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		require.Equal(t, "Alicia", recordedName(t, w.instance(name)))
		w.stop()
		w.users.fail(errdefs.ErrUnavailable)
		w.start()
		w.settled()
		target, err := w.Route("alicia.example.test")
		require.NoError(t, err)
		require.Equal(t, name, target.Webspace)
	})
}

func TestUsernamesSurviveForADirectoryThatForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		directory := newForgetful()
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.directory = directory })
		alice := directory.add(1000, "alice")
		_, err := w.Create(t.Context(), alice, webspace.CreateRequest{Image: "hello"})
		require.NoError(t, err)
		name := "ws-u1000"
		require.Equal(t, "alice", recordedName(t, w.instance(name)))
		w.settled()

		restart := func() {
			w.stop()
			directory = newForgetful()
			w.directory = directory
			w.opts.Provider = providertest.NewFake() // not even a route tells
			w.start()
			w.settled()
		}
		restart()
		target, err := w.Route("alice.example.test")
		require.NoError(t, err)
		require.Equal(t, name, target.Webspace)
		require.Empty(t, w.summary(1000).Problem)

		directory.add(1000, "Alicia") // seen with a new name
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		_, err = w.Route("alicia.example.test")
		require.NoError(t, err)
		require.Equal(t, "Alicia", recordedName(t, w.instance(name)))
		_, err = w.SetConfig(t.Context(), 1000, webspace.ConfigChange{HTTPPort: new(8080)})
		require.NoError(t, err)
		restart()
		_, err = w.Route("alicia.example.test")
		require.NoError(t, err)
		_, err = w.Route("alice.example.test")
		require.True(t, errdefs.IsNotFound(err))
	})
}

// Instances from before have no username in their records, and many of them must not hide those who were seen.
func TestRecordsLearnUsernames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for id := range 40 {
			w.users.add(webspaceUser(id), fmt.Sprintf("user%d", id))
			forgetName(t, w, w.create(webspaceUser(id)))
		}
		w.settled()
		require.Nil(t, recordedName(t, w.instance("ws-u2039")), "a directory that can be asked needs no memory")
		w.stop()
		w.opts.Provider = providertest.NewFake()
		directory := newForgetful()
		w.directory = directory
		w.start()
		w.settled()
		require.Contains(t, w.summary(webspaceUser(39)).Problem, "never seen")
		directory.add(webspaceUser(39), "user39")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		_, err := w.Route("user39.example.test")
		require.NoError(t, err)
		w.settled()
		require.Equal(t, "user39", recordedName(t, w.instance("ws-u2039")))
		require.Nil(t, recordedName(t, w.instance("ws-u2038")))
	})
}
