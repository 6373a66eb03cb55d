package webspace

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

// maxRecord bounds the record. Engines accept megabytes in a key, for each of which every listing would pay.
const maxRecord = 32 << 10

// record is what is stored with an instance: the webspace as JSON, with the field names of version 1 of the API and
// of the records that the 2021 webspaced wrote. It holds no secret: the guest can read it.
type record struct {
	Webspace
	// Instance is the instance's name: a copy or a rename made behind our back is noticed. Records of 2021 lack it.
	Instance string
	// Username is the user's as it last was, for when the directory can not tell. Records of 2021 lack it.
	Username string
	// Checks are of the custom domains whose proof was not there when it was last looked at.
	Checks map[string]domainCheck
	// Creating is set until everything that belongs to the creation is done.
	Creating bool

	// Fields that this version does not know survive a round trip.
	extra, configExtra map[string]json.RawMessage
}

// decodeRecord reads the record of the instance of user. Options that it lacks have their default. Every error is a
// reason to quarantine the webspace.
func decodeRecord(data []byte, instance string, user identity.UserID, defaults Config) (record, error) {
	if data == nil {
		return record{}, badRecord("the instance has no record: it was not made by webspaced")
	}
	if len(data) > maxRecord {
		return record{}, badRecord("the record has %d bytes, more than %d", len(data), maxRecord)
	}
	// Through a map, because decoding into a struct takes field names in any case and any number of times.
	r := record{Webspace: Webspace{Config: defaults}}
	if err := json.Unmarshal(data, &r.extra); err != nil {
		return record{}, badRecord("the record is not a JSON object: %v", err)
	}
	var config map[string]json.RawMessage
	var ports map[string]int
	err := take(r.extra, map[string]any{
		"user": &r.User, "instance": &r.Instance, "username": &r.Username, "creating": &r.Creating,
		"domainChecks": &r.Checks,
		"config":       &config, "domains": &r.Domains, "ports": &ports,
	})
	if err != nil {
		return record{}, err
	}
	delay := defaults.StartupDelay.Seconds()
	r.configExtra = config
	err = take(r.configExtra, map[string]any{
		"startupDelay": &delay, "httpPort": &r.Config.HTTPPort, "sniPassthrough": &r.Config.SNIPassthrough,
	})
	if err != nil {
		return record{}, err
	}
	if math.IsNaN(delay) || delay < 0 || delay > 86400 {
		return record{}, badRecord("startupDelay %v is out of range", delay)
	}
	r.Config.StartupDelay = time.Duration(math.Round(delay * float64(time.Second)))
	if !validPort(r.Config.HTTPPort) {
		return record{}, badRecord("httpPort %d is out of range", r.Config.HTTPPort)
	}
	if r.User != user {
		return record{}, badRecord("the record is of user %d: was the instance copied or renamed?", r.User)
	}
	if r.Instance != "" && r.Instance != instance {
		return record{}, badRecord("the record is of instance %.64q: was the instance copied or renamed?", r.Instance)
	}
	r.Ports = make(map[int]int, len(ports))
	for key, internal := range ports {
		external, err := strconv.Atoi(key)
		if err != nil || !validPort(external) || !validPort(internal) || strconv.Itoa(external) != key {
			return record{}, badRecord("port forward %.16q to %d is out of range", key, internal)
		}
		r.Ports[external] = internal
	}
	return r, nil
}

// take moves known fields out of an object. A field that is missing or null leaves its destination as it is.
func take(object map[string]json.RawMessage, fields map[string]any) error {
	for name, destination := range fields {
		value, ok := object[name]
		if !ok {
			continue
		}
		if err := json.Unmarshal(value, destination); err != nil {
			return badRecord("field %s: %v", name, err)
		}
		delete(object, name)
	}
	return nil
}

func (r record) encode() ([]byte, error) {
	config := maps.Clone(r.configExtra)
	if config == nil {
		config = make(map[string]json.RawMessage)
	}
	object := maps.Clone(r.extra)
	if object == nil {
		object = make(map[string]json.RawMessage)
	}
	ports := make(map[string]int, len(r.Ports))
	for external, internal := range r.Ports {
		ports[strconv.Itoa(external)] = internal
	}
	domains := r.Domains
	if domains == nil {
		domains = []string{}
	}
	put(config, "startupDelay", r.Config.StartupDelay.Seconds())
	put(config, "httpPort", r.Config.HTTPPort)
	put(config, "sniPassthrough", r.Config.SNIPassthrough)
	put(object, "user", r.User)
	put(object, "instance", r.Instance)
	put(object, "config", config)
	put(object, "domains", domains)
	put(object, "ports", ports)
	if r.Username != "" {
		put(object, "username", r.Username)
	}
	if len(r.Checks) > 0 {
		put(object, "domainChecks", r.Checks)
	}
	if r.Creating {
		put(object, "creating", true)
	}
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("the webspace's record would have %d bytes, more than %d: %w", len(data), maxRecord, errdefs.ErrResourceExhausted)
	}
	return data, nil
}

// put stores a value that always encodes.
func put(object map[string]json.RawMessage, name string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // numbers, strings and raw messages that were decoded before
	}
	object[name] = data
}

func badRecord(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
