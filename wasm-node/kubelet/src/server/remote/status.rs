//! The end of a session: a `Status` on the error stream, or only its message for protocols before `v4.channel.k8s.io`.

use bytes::Bytes;
use serde_json::{Value, json};

/// The form that the client's protocol supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusForm {
    Object,
    /// The message alone; empty for a success.
    Message,
}

impl StatusForm {
    pub(super) fn message(self, code: i32) -> Option<Bytes> {
        let status = status(code);
        match self {
            Self::Object => Some(status.to_string().into()),
            Self::Message => status["message"].as_str().map(|words| words.to_owned().into()),
        }
    }
}

/// Builds the status of a command's exit code like upstream's kubelet.
fn status(code: i32) -> Value {
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
    fn exit_statuses_are_upstreams() {
        assert_eq!(status(0)["status"], "Success");
        let failed = status(7);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(StatusForm::Object.message(0).unwrap(), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(StatusForm::Message.message(0), None);
        assert_eq!(
            StatusForm::Message.message(7).unwrap(),
            "command terminated with non-zero exit code: exit status 7"
        );
    }
}
