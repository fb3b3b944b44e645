import unittest

from greetings import greetings


class Greetings(unittest.TestCase):
    def test_each_name_is_greeted(self) -> None:
        self.assertEqual(greetings([]), "hello from {{name}}\n")
        self.assertEqual(greetings(["ada", "bob"]), "hello ada\nhello bob\n")
        with self.assertRaisesRegex(ValueError, "name 2 is empty"):
            greetings(["ada", ""])
