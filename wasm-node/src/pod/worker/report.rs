//! A worker's writes to the API: the status that follows from the state, and the last delete.

use super::*;

impl Worker {
    pub(super) fn project(&mut self) {
        let facts = status::Facts { host_ip: self.node.config.internal_ip, pod_ip: self.ip.or(self.last_ip()) };
        let own: Vec<PodCondition> = self.conditions.clone();
        let others = self.pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let known: Vec<PodCondition> = own
            .iter()
            .cloned()
            .chain(others.into_iter().filter(|other| own.iter().all(|own| own.type_ != other.type_)))
            .collect();
        let mut wanted = status::project(&self.state, &self.pod, &facts, &known, self.now());
        if let Some(conditions) = &mut wanted.conditions
            && self.pod.status.iter().any(|s| s.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled"))
        {
            // The scheduler has written it; it stays as it is.
            conditions.retain(|condition| condition.type_ != "PodScheduled");
        }
        self.conditions = wanted.conditions.clone().unwrap_or_default();
        if wanted != *self.wanted {
            let ready = self.state.ready();
            let after = self.node.parts.env.elapsed().saturating_sub(self.taken_up);
            let wanted = Arc::new(wanted);
            self.view.change(|seen| {
                seen.status = wanted.clone();
                if ready && seen.ready_after.is_none() {
                    seen.ready_after = Some(after);
                }
            });
            self.wanted = wanted;
        }
    }

    /// The address stays in the status of a pod that has ended.
    pub(super) fn last_ip(&self) -> Option<IpAddr> {
        self.wanted.pod_ip.as_deref()?.parse().ok()
    }

    pub(super) fn dirty(&self) -> bool {
        self.written.as_ref() != Some(&self.wanted)
    }

    pub(super) fn write_status(&self) -> Write {
        let (client, wanted) = (self.node.client.clone(), self.wanted.clone());
        let patch = status::patch(&self.pod, &wanted).to_string();
        let path = format!("{}/status", self.path());
        Box::pin(async move {
            let request = Request::patch(path)
                .header(CONTENT_TYPE, "application/strategic-merge-patch+json")
                .body(patch.into_bytes());
            let result = match request {
                Ok(request) => client.request_text(request).await.map(drop),
                Err(error) => Err(kube::Error::HttpError(error)),
            };
            (Some(wanted), result)
        })
    }

    pub(super) fn write_delete(&self) -> Write {
        let client = self.node.client.clone();
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.pod.metadata.uid},
        });
        let request =
            Request::delete(self.path()).header(CONTENT_TYPE, "application/json").body(body.to_string().into_bytes());
        Box::pin(async move {
            let result = match request {
                Ok(request) => client.request_text(request).await.map(drop),
                Err(error) => Err(kube::Error::HttpError(error)),
            };
            (None, result)
        })
    }

    pub(super) fn path(&self) -> String {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let metadata = &self.pod.metadata;
        format!("/api/v1/namespaces/{}/pods/{}", text(&metadata.namespace), text(&metadata.name))
    }

    /// Takes in a write's answer: how long to wait before the next one, if it failed.
    pub(super) fn took(&mut self, status: Option<Arc<PodStatus>>, result: Result<(), kube::Error>) -> Option<Duration> {
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let gone = matches!(&result, Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409);
        match (status, result) {
            (Some(status), Ok(())) => self.written = Some(status),
            (None, Ok(())) => self.delete = false,
            (None, Err(_)) if gone => self.delete = false,
            (Some(status), Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the status cannot be written");
                if gone {
                    // It was deleted, or another has its name: the watch says so soon.
                    self.written = Some(status);
                } else {
                    return Some(self.retry_after());
                }
            }
            (None, Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the pod cannot be deleted");
                return Some(self.retry_after());
            }
        }
        None
    }

    pub(super) fn retry_after(&self) -> Duration {
        let wait = WRITE_RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(WRITE_RETRY_MAX);
        wait + Duration::from_millis(self.node.parts.env.below(1000))
    }

    pub(super) async fn write_now(&mut self) {
        let mut wait = WRITE_RETRY_FIRST;
        loop {
            let (status, result) = self.write_status().await;
            if self.took(status, result).is_none() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WRITE_RETRY_MAX);
        }
    }
}
