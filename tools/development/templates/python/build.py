"""Builds build/{{name}}.wasm. The tools of requirements.txt are in the folder .venv, which is made on the first run."""
import os, subprocess, sys
from pathlib import Path

tools = Path(".venv") / ("Scripts" if os.name == "nt" else "bin")
wanted, installed = Path("requirements.txt").read_text(), Path(".venv/installed.txt")
if not installed.exists() or installed.read_text() != wanted:
    subprocess.run([sys.executable, "-m", "venv", ".venv"], check=True)
    subprocess.run([tools / "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"], check=True)
    installed.write_text(wanted)
Path("build").mkdir(exist_ok=True)
command = [tools / "componentize-py", "-d", "wit", "-w", "{{world}}", "componentize", "{{options}}app", "-o", "build/{{name}}.wasm"]
sys.exit(subprocess.run([part for part in command if part]).returncode)
