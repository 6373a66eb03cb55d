package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnreserved(t *testing.T) {
	for name, test := range map[string]struct {
		first, last         int
		ephemeral, reserved string
		want                string
	}{
		"nothing reserved":   {49152, 65535, "32768\t60999\n", "\n", "49152-65535"},
		"others reserved":    {49152, 65535, "32768\t60999\n", "8080,9000-9100\n", "8080,9000-9100,49152-65535"},
		"partly reserved":    {49152, 65535, "32768\t60999\n", "49152-60998\n", "49152-60998,49152-65535"},
		"a hole":             {50000, 50003, "32768\t60999\n", "50000,50002-50003\n", "50000,50002-50003,50000-50003"},
		"reserved":           {49152, 65535, "32768\t60999\n", "49152-60999\n", ""},
		"reserved in pieces": {50000, 50003, "32768\t60999\n", "50002-50003,50000,50001\n", ""},
		"more is reserved":   {50000, 50003, "32768\t60999\n", "40000-60000,50000\n", ""},
		"apart":              {61000, 65535, "32768\t60999\n", "\n", ""},
		"unreadable":         {49152, 65535, "?", "?", ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, unreserved(test.first, test.last, test.ephemeral, test.reserved))
		})
	}
}
