package main

import "testing"

func TestEachNameIsGreeted(t *testing.T) {
	for _, test := range []struct {
		names []string
		lines string
	}{
		{nil, "hello from {{name}}\n"},
		{[]string{"ada", "bob"}, "hello ada\nhello bob\n"},
	} {
		if lines, err := greetings(test.names); err != nil || lines != test.lines {
			t.Errorf("%v: %q, %v", test.names, lines, err)
		}
	}
	if _, err := greetings([]string{"ada", ""}); err == nil {
		t.Error("an empty name is greeted")
	}
}
