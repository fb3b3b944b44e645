import unittest

from policy import is_avoided, pods_max, score


class Policy(unittest.TestCase):
    def test_labels_and_configurations_are_read(self) -> None:
        self.assertTrue(is_avoided('{"metadata": {"labels": {"{{name}}/avoid": "yes"}}}'))
        self.assertFalse(is_avoided('{"metadata": {}}'))
        self.assertEqual((pods_max(""), pods_max('{"podsMax": 3}'), score(101)), (None, 3, 0))
        for wrong in ('{"podsMax": "many"}', "{"):
            with self.assertRaises(ValueError):
                pods_max(wrong)
