import unittest

from routes import respond


class Routes(unittest.TestCase):
    def test_paths_have_responses(self) -> None:
        self.assertEqual(respond(True, "/"), (200, "hello from {{name}}\n"))
        self.assertEqual(respond(True, "/hello/ada?x=1"), (200, "hello ada\n"))
        self.assertEqual(respond(True, "/hello/")[0], 404)
        self.assertEqual(respond(False, "/")[0], 405)
