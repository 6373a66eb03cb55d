// Package providertest tells whether a [provider.Provider] keeps what that interface promises, with [Run], and has a
// [Fake] for the tests of what uses one.
//
// Whoever writes a provider describes its store as a [Harness] and calls Run from a test. With -race, please.
package providertest
