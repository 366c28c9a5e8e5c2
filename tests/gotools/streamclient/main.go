// A client of a streaming server: client-go's own executors and port forwarder, pointed at a URL.
//
//	streamclient exec [-transport spdy|websocket] [-protocol v4.channel.k8s.io] [-i] [-o] [-e] [-t] [-size ROWSxCOLS] URL
//	streamclient forward [-transport spdy|websocket] URL LOCAL:REMOTE
//
// exec relays its standard streams and exits with the command's code (125: any other failure, on standard error).
// forward says "ready PORT..." and goes on until its standard input ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/apimachinery/pkg/util/httpstream"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

type oneSize struct{ size *remotecommand.TerminalSize }

func (o *oneSize) Next() *remotecommand.TerminalSize {
	size := o.size
	o.size = nil
	return size
}

func fail(err error) {
	var code exec.CodeExitError
	if errors.As(err, &code) {
		os.Exit(code.Code)
	}
	fmt.Fprintln(os.Stderr, "streamclient:", err)
	os.Exit(125)
}

func executor(transport, protocol string, at *url.URL) (remotecommand.Executor, error) {
	config := &restclient.Config{}
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", at.String(), protocol)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, "POST", at, protocol)
}

func runExec(words []string) error {
	flags := flag.NewFlagSet("exec", flag.ExitOnError)
	transport, protocol := flags.String("transport", "spdy", ""), flags.String("protocol", "v4.channel.k8s.io", "")
	in, out, errs := flags.Bool("i", false, ""), flags.Bool("o", false, ""), flags.Bool("e", false, "")
	tty, size := flags.Bool("t", false, ""), flags.String("size", "", "")
	flags.Parse(words)
	at, err := url.Parse(flags.Arg(0))
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *in {
		options.Stdin = os.Stdin
	}
	if *out {
		options.Stdout = os.Stdout
	}
	if *errs {
		options.Stderr = os.Stderr
	}
	if *size != "" {
		wanted := &remotecommand.TerminalSize{}
		fmt.Sscanf(*size, "%dx%d", &wanted.Height, &wanted.Width)
		options.TerminalSizeQueue = &oneSize{wanted}
	}
	runner, err := executor(*transport, *protocol, at)
	if err != nil {
		return err
	}
	return runner.StreamWithContext(context.Background(), options)
}

func dialer(transport string, at *url.URL) (httpstream.Dialer, error) {
	config := &restclient.Config{}
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(at, config)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, "POST", at), nil
}

func runForward(words []string) error {
	flags := flag.NewFlagSet("forward", flag.ExitOnError)
	transport := flags.String("transport", "spdy", "")
	flags.Parse(words)
	at, err := url.Parse(flags.Arg(0))
	if err != nil {
		return err
	}
	dial, err := dialer(*transport, at)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dial, flags.Args()[1:], stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		ports, _ := forwarder.GetPorts()
		fmt.Print("ready")
		for _, port := range ports {
			fmt.Printf(" %d", port.Local)
		}
		fmt.Println()
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}

func main() {
	run := map[string]func([]string) error{"exec": runExec, "forward": runForward}[os.Args[1]]
	if err := run(os.Args[2:]); err != nil {
		fail(err)
	}
}
