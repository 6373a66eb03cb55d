package proxy

// presence is what is known of a client that nobody reads from.
type presence int

const (
	quiet presence = iota
	sent           // something that was not read yet; it may have ended or left since, which nothing tells apart
	gone
)
