package openapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"
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
	client := &http.Client{Timeout: 6 * time.Minute}
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

// failing makes errors of answers that are not a success.
type failing struct{ client *http.Client }

func (f failing) Do(req *http.Request) (*http.Response, error) {
	resp, err := f.client.Do(req)
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	// What can not be read is missing from the message and no reason to hide the status.
	_, _ = io.Copy(&body, io.LimitReader(resp.Body, maxAnswer))
	return nil, newError(resp.StatusCode, body.Bytes())
}
