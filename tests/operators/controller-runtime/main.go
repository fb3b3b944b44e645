// An operator on controller-runtime: keeps a Fleet's ConfigMaps, holds it with a finalizer, and answers its two webhooks.
//
// operator CERT_DIR PORT: the kubeconfig is $KUBECONFIG's.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const finalizer = "trial.example.com/operator"

func fleet() *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(schema.GroupVersionKind{Group: "trial.example.com", Version: "v1", Kind: "Fleet"})
	return object
}

type reconciler struct{ client.Client }

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	it := fleet()
	if err := r.Get(ctx, request.NamespacedName, it); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !it.GetDeletionTimestamp().IsZero() {
		farewell := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "farewell-" + it.GetName(), Namespace: it.GetNamespace()}}
		if err := r.Create(ctx, farewell); err != nil && !apierrors.IsAlreadyExists(err) {
			return ctrl.Result{}, err
		}
		controllerutil.RemoveFinalizer(it, finalizer)
		return ctrl.Result{}, client.IgnoreNotFound(r.Update(ctx, it))
	}
	if controllerutil.AddFinalizer(it, finalizer) {
		if err := r.Update(ctx, it); err != nil {
			return ctrl.Result{}, err
		}
	}
	boats, _, _ := unstructured.NestedInt64(it.Object, "spec", "boats")
	for n := int64(0); n < boats; n++ {
		boat := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", it.GetName(), n), Namespace: it.GetNamespace()}}
		_, err := controllerutil.CreateOrUpdate(ctx, r.Client, boat, func() error {
			boat.Labels = map[string]string{"fleet": it.GetName()}
			return controllerutil.SetControllerReference(it, boat, r.Scheme())
		})
		if err != nil {
			return ctrl.Result{}, err
		}
	}
	var boatsThere corev1.ConfigMapList
	if err := r.List(ctx, &boatsThere, client.InNamespace(it.GetNamespace()), client.MatchingLabels{"fleet": it.GetName()}); err != nil {
		return ctrl.Result{}, err
	}
	for i := range boatsThere.Items {
		n, err := strconv.ParseInt(boatsThere.Items[i].Name[len(it.GetName())+1:], 10, 64)
		if err == nil && n >= boats {
			if err := r.Delete(ctx, &boatsThere.Items[i]); client.IgnoreNotFound(err) != nil {
				return ctrl.Result{}, err
			}
		}
	}
	_ = unstructured.SetNestedField(it.Object, boats, "status", "boats")
	_ = unstructured.SetNestedField(it.Object, it.GetGeneration(), "status", "observedGeneration")
	return ctrl.Result{}, r.Status().Update(ctx, it)
}

func mutate(_ context.Context, request admission.Request) admission.Response {
	it := fleet()
	if err := json.Unmarshal(request.Object.Raw, it); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if _, found, _ := unstructured.NestedString(it.Object, "spec", "harbour"); !found {
		_ = unstructured.SetNestedField(it.Object, "home", "spec", "harbour")
	}
	changed, err := json.Marshal(it)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, changed)
}

func validate(_ context.Context, request admission.Request) admission.Response {
	it := fleet()
	if err := json.Unmarshal(request.Object.Raw, it); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if boats, _, _ := unstructured.NestedInt64(it.Object, "spec", "boats"); boats > 5 {
		return admission.Denied("no more than five boats")
	}
	return admission.Allowed("")
}

func main() {
	ctrl.SetLogger(zap.New())
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	manager, err := ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Metrics:       server.Options{BindAddress: "0"},
		WebhookServer: webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: os.Args[1]}),
	})
	if err != nil {
		panic(err)
	}
	manager.GetWebhookServer().Register("/mutate", &webhook.Admission{Handler: admission.HandlerFunc(mutate)})
	manager.GetWebhookServer().Register("/validate", &webhook.Admission{Handler: admission.HandlerFunc(validate)})
	if err := ctrl.NewControllerManagedBy(manager).For(fleet()).Owns(&corev1.ConfigMap{}).Complete(&reconciler{manager.GetClient()}); err != nil {
		panic(err)
	}
	if err := manager.Start(ctrl.SetupSignalHandler()); err != nil {
		panic(err)
	}
}
