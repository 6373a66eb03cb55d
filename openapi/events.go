package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

const (
	heartbeat     = 15 * time.Second // keeps what is between us and the client from giving up on an idle stream
	streamTimeout = 10 * time.Second // for a client that does not read
)

// eventEnd is the last event of a stream: the problem because of which it ends.
const eventEnd = "end"

// followEvents streams what happens to a webspace as server-sent events.
func (s *Server) followEvents(w http.ResponseWriter, r *http.Request, writer access.Writer) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if _, err := writer.Get(ctx); err != nil {
		return err
	}
	notices, ended := make(chan webspace.Notice), make(chan error, 1)
	go func() {
		ended <- writer.Follow(ctx, func(n webspace.Notice) {
			select {
			case notices <- n:
			case <-ctx.Done():
			}
		})
	}()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the events back
	stream := eventStream{w, http.NewResponseController(w)}
	err := stream.send([]byte(": what happens to the webspace\n\n"))
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for err == nil {
		select {
		case n := <-notices:
			err = stream.event(string(n.Kind), Notice{Time: n.Time, Kind: string(n.Kind), Message: n.Message})
		case <-tick.C:
			err = stream.send([]byte(":\n\n"))
		case err = <-ended:
			stream.goodbye(ctx, err)
			return nil
		}
	}
	cancel()
	<-ended
	return nil // the client is gone: nobody is left to be told
}

// eventStream writes server-sent events.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// send writes to a client that may have stopped to read.
func (s eventStream) send(text []byte) error {
	// Where there are no deadlines, in tests, there is no client that does not read.
	_ = s.control.SetWriteDeadline(time.Now().Add(streamTimeout))
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	return s.control.Flush()
}

// event writes one event, with what it tells in JSON.
func (s eventStream) event(kind string, what any) error {
	data, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return s.send(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", kind, data))
}

// goodbye tells the client why the stream ends.
func (s eventStream) goodbye(ctx context.Context, err error) {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	p := newProblem(err)
	if errors.Is(err, errShutdown) {
		p.Message = errShutdown.Error()
	}
	_ = s.event(eventEnd, p)
}
