//go:build !unix

package testbed

import "syscall"

func ownGroup() *syscall.SysProcAttr { return nil }
