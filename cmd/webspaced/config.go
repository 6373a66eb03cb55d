package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/netsoc/webspaced/internal/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check or show the configuration"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Report all mistakes in the configuration; start nothing",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := loadConfig(cmd, args)
				if err != nil {
					return err
				}
				source := c.File
				if source == "" {
					source = "the environment"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: no mistakes\n", source)
				return nil
			},
		},
		&cobra.Command{
			Use:   "show [FILE]",
			Short: "Print the effective configuration, with secrets hidden",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := loadConfig(cmd, args)
				if err != nil {
					return err
				}
				_, err = c.WriteTo(cmd.OutOrStdout())
				return err
			},
		},
	)
	return cmd
}

// loadConfig loads the configuration file named by args, or the usual ones, and prints warnings.
func loadConfig(cmd *cobra.Command, args []string) (*config.Config, error) {
	var file string
	if len(args) > 0 {
		file = args[0]
	}
	c, warnings, err := config.Load(file, os.Environ())
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	if err != nil {
		return nil, errors.Join(errors.New("the configuration has mistakes"), err)
	}
	return c, nil
}
