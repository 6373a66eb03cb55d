// Command webspaced gives every member of an organisation a webspace. It wires the packages of this module together.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/netsoc/webspaced/webspace/local"
)

func main() {
	local.Main() // this program is also what instances of the local runtime run
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // "demo | head" is no reason to leave anything behind
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "webspaced:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "webspaced",
		Short: "Gives each member a machine of their own, which boots on its first request",
		Long: "webspaced gives every member of an organisation a webspace: a system container with root access and the\n" +
			"web address username.domain. A stopped webspace boots on its first request, which is held, not refused.\n\n" +
			"Try it with \"webspaced demo\"; run it with \"webspaced serve\".",
		SilenceUsage:  true,
		SilenceErrors: true,
		// Completion scripts are not worth a command in the list of five.
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(serveCommand(), demoCommand(), configCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), version())
		},
	}
}

// version is the module's version, or the commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "webspaced (unknown version)"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "development"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v += " " + s.Value
			}
		}
	}
	return fmt.Sprintf("webspaced %s, %s", v, info.GoVersion)
}
