//go:build !linux

package proxy

import (
	"errors"
	"syscall"
)

func share(string, string, syscall.RawConn) (bool, error) { return false, nil }
func bindOnly(string, string, syscall.RawConn) error      { return nil }
func yield(syscall.RawConn) error                         { return errors.ErrUnsupported }
