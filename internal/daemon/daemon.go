// Package daemon turns `vacate serve` into three processes, and a fourth where it may
// make block devices: it prepares folders and sockets, becomes the keeper, and is
// what `vacate engine`, `vacate control` and `vacate devices` run.
//
//	serve ──folders, sockets──> keeper ─┬─> vacate engine   (package engine)
//	                              :     └─> vacate control  (package control)
//	                              └ ─ ─ ─ > vacate devices  (package devices; aide.go)
//
// Settings reach the children as JSON in their environment, past the keeper,
// which does not read it.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"vacate/internal/config"
	"vacate/internal/control"
	"vacate/internal/engine"
	"vacate/internal/fail"
	"vacate/internal/handoff"
	"vacate/internal/keeper"
	"vacate/internal/plant"
	"vacate/internal/sandbox"
	"vacate/internal/sys"
	"vacate/internal/version"
	"vacate/internal/volatile"
)

// Variables that carry the children's settings, and what else they are told.
const (
	engineEnv  = "VACATE_ENGINE_SETTINGS"
	controlEnv = "VACATE_CONTROL_SETTINGS"
	keeperEnv  = "VACATE_KEEPER_VERSION" // which version of the program keeps the keys
	aliveEnv   = "VACATE_ALIVE"          // the path of the engines' lock; also the keeper's own, over upgrades
)

// engineSettings is what the engine's process gets.
type engineSettings struct {
	Engine engine.Settings `json:"engine"`
	Log    config.Log      `json:"log"`
}

// Serve runs the daemon until a stop is granted, or ctx is done. In a process
// that an earlier daemon has handed over it goes on with what that had; what
// keeps it from that, a fault in the configuration too, gives it back.
func Serve(ctx context.Context, load func() (config.Config, error)) (err error) {
	h, err := handoff.Inherited()
	if err != nil {
		return err
	}
	cfg, err := configuration(h, load)
	if err != nil {
		return h.Return(err)
	}
	settings, err := json.Marshal(cfg)
	if err != nil {
		return h.Return(fmt.Errorf("encoding the configuration: %w", err))
	}
	p := inherit(cfg, h)
	if h == nil {
		if p, err = prepare(cfg); err != nil {
			return err
		}
	}
	recipe, err := recipeOf(cfg, p.alivePath)
	if err != nil {
		return h.Return(err)
	}
	self, err := program(h != nil)
	if err != nil {
		return h.Return(err)
	}
	log := logger(cfg.Log, os.Stderr, "keeper")
	aide, err := startAide(cfg, h, self, log)
	if err != nil {
		return h.Return(err)
	}
	err = keeper.Run(ctx, keeper.Config{
		Self: self, Args: os.Args[1:], Recipe: recipe, Settings: settings, Place: cfg.RunDir + ", " + cfg.StateDir, Handoff: h,
		API: p.api.file, Admin: p.admin.file, Alive: p.alive, Lock: p.lock,
		LockedMemfd: cfg.LockedMemfd(), Notify: notifier(time.Now), Log: log,
	})
	if h != nil && h.Checking {
		return err
	}
	err = errors.Join(err, p.close())
	aide.end()
	return err
}

// configuration is what load says, but for a program to which its successor has
// given everything back: by now that may be for the successor alone.
func configuration(h *handoff.Handoff, load func() (config.Config, error)) (cfg config.Config, err error) {
	if h == nil || h.Failed == "" {
		return load()
	}
	if err := json.Unmarshal(h.Settings, &cfg); err != nil {
		return cfg, fmt.Errorf("reading the configuration of before the upgrade: %w", err)
	}
	return cfg, nil
}

// driveEngine is the engine that drives are to have, "" for the best of each.
func driveEngine(cfg config.Config) string {
	if cfg.DriveEngine == config.DriveEngines[0] {
		return ""
	}
	return cfg.DriveEngine
}

// recipeOf says what the children are started with.
func recipeOf(cfg config.Config, alive string) (r keeper.Recipe, err error) {
	engineVar, err := variable(engineEnv, engineSettings{
		Engine: engine.Settings{MaxConns: cfg.MaxConnections, DriveEngine: driveEngine(cfg), Poll: cfg.PollBudget, LockBuffers: cfg.Dev == "", Version: version.String(), Sandbox: engineSandbox(cfg)},
		Log:    cfg.Log,
	})
	if err != nil {
		return r, err
	}
	controlVar, err := variable(controlEnv, cfg)
	if err != nil {
		return r, err
	}
	r.Layout = volatile.Layout
	r.EngineEnv = []string{engineVar, keeperEnv + "=" + version.String()}
	r.ControlEnv = []string{controlVar, keeperEnv + "=" + version.String(), aliveEnv + "=" + alive}
	if !cfg.SandboxOff() {
		r.Rights = map[string][]sys.Capability{"engine": sandbox.EngineKeeps, "control": sandbox.ControlKeeps}
	}
	if plant.On { // a test's build: the bug that it plants may lie in either
		r.EngineEnv = append(r.EngineEnv, plant.Variable+"="+os.Getenv(plant.Variable))
		r.ControlEnv = append(r.ControlEnv, plant.Variable+"="+os.Getenv(plant.Variable))
	}
	if fail.On { // likewise: the point that it names may lie in any process
		r.EngineEnv = append(r.EngineEnv, fail.Variable+"="+os.Getenv(fail.Variable))
		r.ControlEnv = append(r.ControlEnv, fail.Variable+"="+os.Getenv(fail.Variable))
	}
	return r, nil
}

// program is the path at which an upgrade finds the next version: as this one
// was called, where that names it, so that a symbolic link may be switched. One
// that was handed over is called by its predecessor's path, whatever is there.
func program(handedOver bool) (string, error) {
	if handedOver && filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	called, err := filepath.Abs(os.Args[0])
	if err != nil {
		return "", err
	}
	a, aerr := os.Stat(called)
	b, berr := os.Stat("/proc/self/exe")
	if aerr == nil && berr == nil && os.SameFile(a, b) {
		return called, nil
	}
	return self, nil
}

// notifier tells the service manager, if there is one (sd_notify(3)): systemd's
// own client would bring D-Bus for these lines. It is nil without.
func notifier(now func() time.Time) func(string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	var every time.Duration // half of what the manager waits
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && (os.Getenv("WATCHDOG_PID") == "" || os.Getenv("WATCHDOG_PID") == strconv.Itoa(os.Getpid())) {
		every = time.Duration(usec) * time.Microsecond / 2
	}
	var fed time.Time
	return func(state string) {
		if state == "WATCHDOG=1" {
			if every <= 0 || now().Sub(fed) < every {
				return
			}
			fed = now()
		}
		sys.Notify(socket, state) //nolint:errcheck // a manager that is away misses it; nothing here depends on it
	}
}

// Engine is the process of `vacate engine`.
func Engine() error {
	var s engineSettings
	if err := settings(engineEnv, &s); err != nil {
		return err
	}
	become("vacate-engine", 8)
	return engine.Run(context.Background(), engine.Files{
		Link: os.NewFile(3, "link"), Death: os.NewFile(4, "death"), Keys: os.NewFile(5, "keys"), Table: os.NewFile(6, "table"),
		Alive: os.NewFile(7, "alive"),
	}, s.Engine, logger(s.Log, os.Stderr, "engine"))
}

// Control is the process of `vacate control`.
func Control() error {
	var cfg config.Config
	if err := settings(controlEnv, &cfg); err != nil {
		return err
	}
	become("vacate-control", 7)
	return control.Run(context.Background(), cfg, control.Files{
		API: os.NewFile(3, "api"), Admin: os.NewFile(4, "admin"), Link: os.NewFile(5, "link"), Death: os.NewFile(6, "death"),
	}, logger(cfg.Log, os.Stderr, "control"))
}

// become undoes what the way in which a child is started has left: the name of a
// descriptor, the descriptor of the program, and, where the keeper came by an
// upgrade, signals that are blocked.
func become(name string, programFD int) {
	sys.SetName(name)                                 //nolint:errcheck // for people
	sys.AllowSignals()                                //nolint:errcheck // for people who send them
	signal.Ignore(syscall.SIGPIPE)                    // a reader of the log that goes away must not end one engine after the other
	os.NewFile(uintptr(programFD), "program").Close() //nolint:errcheck // started by hand, there is none
}

func variable(name string, v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding %s: %w", name, err)
	}
	return name + "=" + string(b), nil
}

func settings(name string, v any) error {
	text, ok := os.LookupEnv(name)
	if !ok {
		return fmt.Errorf("%s is not set: this command is started by `vacate serve`, not by hand", name)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return fmt.Errorf("decoding %s: %w", name, err)
	}
	return nil
}

// logger is the log of one of the three processes.
func logger(cfg config.Log, w io.Writer, process string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if cfg.Format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	return slog.New(h).With("process", process)
}
