// A plugin of the Node Resource Interface by its own library: it says what it is told, a line each, and adjusts what
// is created. Arguments: the socket, its name, its index, and a directory that containers get as /plugin.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	directory string
}

func said(event string, words ...any) error {
	fmt.Println(append([]any{event}, words...)...)
	return nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	return nil, said("Synchronize", len(pods), len(containers))
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return said("RunPodSandbox", pod.GetName())
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return said("StopPodSandbox", pod.GetName())
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return said("RemovePodSandbox", pod.GetName())
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	score := 777
	made := &api.ContainerAdjustment{}
	made.AddAnnotation("by", "go")
	made.AddEnv("FROM", "go")
	made.RemoveEnv("DROPPED")
	made.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: p.directory, Options: []string{"rbind", "ro"}})
	made.AddRlimit("RLIMIT_NOFILE", 77, 66)
	made.SetLinuxOomScoreAdj(&score)
	made.SetLinuxCPUShares(1234)
	return made, nil, said("CreateContainer", container.GetName())
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) error {
	return said("PostCreateContainer", container.GetName(), container.GetAnnotations()["by"])
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) error {
	return said("StartContainer", container.GetName())
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) error {
	return said("PostStartContainer", container.GetName())
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, container *api.Container, limits *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	made := &api.ContainerUpdate{}
	made.SetContainerId(container.GetId())
	made.SetLinuxCPUShares(limits.GetCpu().GetShares().GetValue() * 2)
	return []*api.ContainerUpdate{made}, said("UpdateContainer", container.GetName())
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, said("StopContainer", container.GetName())
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, container *api.Container) error {
	return said("RemoveContainer", container.GetName())
}

func main() {
	words := os.Args[1:]
	made, err := stub.New(&plugin{words[3]}, stub.WithSocketPath(words[0]), stub.WithPluginName(words[1]), stub.WithPluginIdx(words[2]))
	if err == nil {
		err = made.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
