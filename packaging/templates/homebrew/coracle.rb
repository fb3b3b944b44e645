# Filled by packaging/build.
class Coracle < Formula
  desc "Kubernetes for WebAssembly in one binary"
  homepage "@URL@"
  url "@URL@/@VERSION@/coracle-@VERSION@-linux-@ARCH@.tar.gz"
  sha256 "@SHA256@"
  license "Apache-2.0"

  depends_on arch: :@BREW_ARCH@
  depends_on :linux

  def install
    bin.install "bin/coracle"
    man1.install Dir["share/man/man1/*.1"]
    bash_completion.install "share/completions/coracle"
    zsh_completion.install "share/completions/_coracle"
    fish_completion.install "share/completions/coracle.fish"
    doc.install "LICENSE", "THIRD-PARTY-LICENSES", "README.md", "CHANGELOG.md", "coracle.cdx.json"
  end

  service do
    run [opt_bin/"coracle", "up", "--data-dir", var/"coracle"]
    keep_alive crashed: true
    log_path var/"log/coracle.log"
    error_log_path var/"log/coracle.log"
  end

  test do
    assert_match "coracle: @PROGRAM_VERSION@", shell_output("#{bin}/coracle version")
  end
end
