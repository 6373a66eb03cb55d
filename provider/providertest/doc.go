// Package providertest tells whether a [provider.Provider] keeps what that interface promises ([Run]), and has a [Fake]
// for tests of what uses one.
package providertest
