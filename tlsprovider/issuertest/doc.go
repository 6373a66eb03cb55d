// Package issuertest tells whether a [tlsprovider.Issuer] keeps what that interface promises, with [Run], and has a [Fake]
// for the tests of what uses one.
//
// Whoever writes an issuer describes what stands behind it as a [Harness] and calls Run from a test. With -race, please.
package issuertest
