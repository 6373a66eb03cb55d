package testbed

import "syscall"

// ownGroup keeps a ^C at the terminal for the test process alone, and takes the child along when that is killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
