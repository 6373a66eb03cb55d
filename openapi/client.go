package openapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxAnswer bounds the body of an answer that is not a success, in bytes.
const maxAnswer = 64 << 10

// ConnectOptions are the options of [Connect]. The zero value of each is its default.
type ConnectOptions struct {
	// HTTPClient sends the requests. The default is a client of its own that gives up after 6 minutes: creating a
	// webspace and running a command may take a while.
	HTTPClient *http.Client
}

// Connect returns a client of the API at a server, such as "https://webspaces.example.org", with a user's bearer token;
// an empty one will do for what needs none. It does not connect yet.
//
// Every method returns an error for an answer that is not a success: an [*Error] of the class that the server meant. The
// fields of a response for other statuses are therefore never set.
func Connect(server, token string, opts *ConnectOptions) (*ClientWithResponses, error) {
	client := &http.Client{Timeout: 12 * time.Minute} // the installation of an SSH server takes up to 10
	if opts != nil && opts.HTTPClient != nil {
		client = opts.HTTPClient
	}
	return NewClientWithResponses(server,
		WithHTTPClient(failing{client}),
		WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			return nil
		}))
}

// failing makes errors of answers that are not a success. A server that can not be reached is Unavailable.
type failing struct{ client *http.Client }

func (f failing) Do(req *http.Request) (*http.Response, error) {
	resp, err := f.client.Do(req)
	switch {
	case err != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	case resp.StatusCode < 300:
		return resp, nil
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	// What can not be read is missing from the message and no reason to hide the status.
	_, _ = io.Copy(&body, io.LimitReader(resp.Body, maxAnswer))
	return nil, newError(resp.StatusCode, body.Bytes())
}

// maxEvent bounds an event of a stream, in bytes.
const maxEvent = 64 << 10

// FollowEvents calls notify, one at a time, with what happens to a webspace until ctx ends or the server ends the stream:
// the error is then an [*Error], NotFound if the webspace was deleted. When the connection is lost it is Unavailable. The
// timeout of the HTTP client does not count.
func (c *ClientWithResponses) FollowEvents(ctx context.Context, username string, notify func(Notice)) error {
	api, ok := c.ClientInterface.(*Client)
	if !ok {
		return fmt.Errorf("this client can not follow: %w", errdefs.ErrNotImplemented)
	}
	req, err := NewGetWebspaceRequest(api.Server, username)
	if err != nil {
		return err
	}
	req.URL.Path += "/events"
	if req.URL.RawPath != "" {
		req.URL.RawPath += "/events"
	}
	req = req.WithContext(ctx)
	if err := api.applyEditors(ctx, req, nil); err != nil {
		return err
	}
	doer := api.Client
	if f, ok := doer.(failing); ok {
		patient := *f.client
		patient.Timeout = 0
		doer = failing{&patient}
	}
	resp, err := doer.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = readEvents(resp.Body, func(kind string, data []byte) error {
		if kind == eventEnd {
			var p Problem
			if err := json.Unmarshal(data, &p); err != nil || p.Status == nil {
				return fmt.Errorf("the server ended the stream: %w", errdefs.ErrUnknown)
			}
			return newError(*p.Status, data)
		}
		var n Notice
		if err := json.Unmarshal(data, &n); err != nil {
			return fmt.Errorf("event %.64q makes no sense: %w", kind, errdefs.ErrUnknown)
		}
		notify(n)
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// readEvents calls event with each server-sent event until that fails or the stream ends, which is Unavailable.
func readEvents(stream io.Reader, event func(kind string, data []byte) error) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, maxEvent)
	var kind string
	var data []byte
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "" && data != nil:
			if err := event(kind, data); err != nil {
				return err
			}
			kind, data = "", nil
		case field == "event":
			kind = value
		case field == "data" && len(data)+len(value) <= maxEvent:
			data = append(data, value...)
		}
	}
	return fmt.Errorf("the stream of events broke off: %w", errdefs.ErrUnavailable)
}
