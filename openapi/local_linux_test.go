package openapi_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace/local"
)

func TestMain(m *testing.M) {
	local.Main()
	os.Exit(m.Run())
}

func TestEveryOperationLocal(t *testing.T) {
	runtime, err := local.New(filepath.Join(t.TempDir(), "instances"), &local.Options{Ports: []uint16{8080}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, runtime.Close()) })
	a := newAPIOn(t, runtime, nil)
	everyOperation(t, a)
}
