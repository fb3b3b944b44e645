import unittest

from cards import write_text


class Cards(unittest.TestCase):
    def test_cards_are_written(self) -> None:
        self.assertEqual(write_text("ada", "french"), ("bonjour ada", 10))
        self.assertEqual(write_text("ada", "english"), ("hello ada", 8))
