//! How a component reaches the apiserver: a `kube::Client`, remote or over an in-process service.
