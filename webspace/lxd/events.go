package lxd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/webspace"
)

// Watch implements [webspace.Watcher]. It asks nothing of the engine for an event.
func (r *Runtime) Watch(ctx context.Context, notify func(webspace.Event)) error {
	run, cancel := context.WithCancel(ctx)
	conn, err := r.client.websocket(run, r.client.path(url.Values{"type": {api.EventTypeLifecycle}}, "events"))
	if err != nil {
		cancel()
		return err
	}
	// The engine accepts the websocket before it adds it to those that get events, but answers pings only after that.
	established := false
	wait := keepAlive(run, conn, r.opts.EventTimeout, func() {
		if !established {
			established = true
			notify(webspace.Event{})
		}
	})
	defer wait()
	defer cancel()
	for {
		_, message, err := conn.NextReader()
		var data []byte
		if err == nil {
			// Those about us are small. One cut off here does not decode, and is ignored.
			data, err = io.ReadAll(io.LimitReader(message, 64<<10))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("lxd: %w", ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("lxd: event stream lost: %v: %w", err, errdefs.ErrUnavailable)
		}
		if event, ok := decodeEvent(data); ok && established {
			notify(event)
		}
	}
}

// keepAlive makes reading from a connection fail once nothing has come for the timeout. It sends pings until ctx ends,
// which wait waits for. pong is called by whoever reads, for each answer.
func keepAlive(ctx context.Context, conn *websocket.Conn, timeout time.Duration, pong func()) (wait func()) {
	conn.SetReadDeadline(time.Now().Add(timeout))
	conn.SetPongHandler(func(string) error {
		pong()
		return conn.SetReadDeadline(time.Now().Add(timeout))
	})
	var pings sync.WaitGroup
	pings.Go(func() {
		ticker := time.NewTicker(timeout / 3)
		defer ticker.Stop()
		for {
			// A failure shows when reading.
			conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(timeout/3))
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return pings.Wait
}

// changes are the actions that can change what [webspace.Instance] holds. Those that a guest or its user can cause at will
// (exec, files, console, the guest's word that it is ready) are not among them.
var changes = map[string]bool{
	api.EventLifecycleInstanceCreated:   true,
	api.EventLifecycleInstanceDeleted:   true,
	api.EventLifecycleInstancePaused:    true,
	api.EventLifecycleInstanceRestarted: true,
	api.EventLifecycleInstanceRestored:  true,
	api.EventLifecycleInstanceResumed:   true,
	api.EventLifecycleInstanceShutdown:  true,
	api.EventLifecycleInstanceStarted:   true,
	api.EventLifecycleInstanceStopped:   true,
	api.EventLifecycleInstanceUpdated:   true,
}

// decodeEvent returns what a message of the event stream says, if that is anything to us.
func decodeEvent(data []byte) (webspace.Event, bool) {
	var event struct {
		Type     string
		Metadata json.RawMessage
	}
	var change struct{ Action, Source string }
	if json.Unmarshal(data, &event) != nil || event.Type != api.EventTypeLifecycle ||
		json.Unmarshal(event.Metadata, &change) != nil {
		return webspace.Event{}, false
	}
	if change.Action == api.EventLifecycleInstanceRenamed {
		return webspace.Event{}, true // two names have changed
	}
	source, err := url.Parse(change.Source)
	if err != nil || !changes[change.Action] {
		return webspace.Event{}, false
	}
	name, ok := strings.CutPrefix(source.Path, "/1.0/instances/")
	if !ok || checkName(name) != nil {
		return webspace.Event{}, false
	}
	return webspace.Event{Instance: name}, true
}
