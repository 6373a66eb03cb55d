//go:build !linux

package testbed

import "syscall"

func ownGroup() *syscall.SysProcAttr { return nil }
