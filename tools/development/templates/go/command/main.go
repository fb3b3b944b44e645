// A command, for Jobs and CronJobs: it greets the names in its arguments.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	lines, err := greetings(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "{{name}}: %v\n", err)
		os.Exit(1)
	}
	fmt.Print(lines)
}

// greetings has one line for each name.
func greetings(names []string) (string, error) {
	if len(names) == 0 {
		return "hello from {{name}}\n", nil
	}
	var lines strings.Builder
	for at, name := range names {
		if name == "" {
			return "", fmt.Errorf("name %d is empty", at+1)
		}
		fmt.Fprintf(&lines, "hello %s\n", name)
	}
	return lines.String(), nil
}
