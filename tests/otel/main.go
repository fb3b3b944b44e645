// otel FILE ADDRESS-FILE ADDRESS: an OpenTelemetry collector with the OTLP receiver over HTTP and the file format of OTLP/JSON: each request's spans
// and log records are a line of FILE. It listens on ADDRESS
// (with port 0 on a free one), and writes the address to ADDRESS-FILE.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/config/confighttp"
	"go.opentelemetry.io/collector/config/confignet"
	"go.opentelemetry.io/collector/config/configoptional"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func remove[T any](of *configoptional.Optional[T]) { *of = configoptional.None[T]() }

func main() {
	out := must(os.OpenFile(os.Args[1], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))
	var lock sync.Mutex
	write := func(line []byte, err error) error {
		if err == nil {
			lock.Lock()
			defer lock.Unlock()
			_, err = out.Write(append(line, '\n'))
		}
		return err
	}
	probe := must(net.Listen("tcp", os.Args[3]))
	address := probe.Addr().String()
	probe.Close()

	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	server := confighttp.NewDefaultServerConfig()
	server.NetAddr = confignet.AddrConfig{Endpoint: address, Transport: confignet.TransportTypeTCP}
	config.Protocols.HTTP = configoptional.Some(otlpreceiver.HTTPConfig{ServerConfig: server, TracesURLPath: "/v1/traces", MetricsURLPath: "/v1/metrics", LogsURLPath: "/v1/logs"})
	remove(&config.Protocols.GRPC)
	settings := receivertest.NewNopSettings(factory.Type())
	traces := must(consumer.NewTraces(func(_ context.Context, spans ptrace.Traces) error {
		return write((&ptrace.JSONMarshaler{}).MarshalTraces(spans))
	}))
	logs := must(consumer.NewLogs(func(_ context.Context, records plog.Logs) error {
		return write((&plog.JSONMarshaler{}).MarshalLogs(records))
	}))
	ctx := context.Background()
	// One server serves both signals.
	for _, receiver := range []component.Component{must(factory.CreateTraces(ctx, settings, config, traces)), must(factory.CreateLogs(ctx, settings, config, logs))} {
		must(0, receiver.Start(ctx, componenttest.NewNopHost()))
	}
	must(0, os.WriteFile(os.Args[2]+".new", []byte(address), 0o600))
	must(0, os.Rename(os.Args[2]+".new", os.Args[2]))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
