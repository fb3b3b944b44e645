//! How a session ended, in the words of the protocols from `v4.channel.k8s.io` on: a `Status` on the error stream.

use serde_json::{Value, json};

/// As upstream's kubelet writes it for a command's exit code.
pub(super) fn status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_upstream_tells_them() {
        assert_eq!(status(0)["status"], "Success");
        let failed = status(7);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
    }
}
