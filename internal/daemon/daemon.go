// Package daemon turns `vacate serve` into three processes: it prepares folders
// and sockets, becomes the keeper, and is what `vacate engine` and `vacate
// control` run.
//
//	serve ──folders, sockets──> keeper ─┬─> vacate engine   (package engine)
//	                                    └─> vacate control  (package control)
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

	"vacate/internal/config"
	"vacate/internal/control"
	"vacate/internal/engine"
	"vacate/internal/keeper"
	"vacate/internal/plant"
	"vacate/internal/version"
)

// Variables that carry the children's settings.
const (
	engineEnv  = "VACATE_ENGINE_SETTINGS"
	controlEnv = "VACATE_CONTROL_SETTINGS"
)

// engineSettings is what the engine's process gets.
type engineSettings struct {
	Engine engine.Settings `json:"engine"`
	Log    config.Log      `json:"log"`
}

// Serve runs the daemon until a stop is granted, or ctx is done.
func Serve(ctx context.Context, cfg config.Config) (err error) {
	lock, err := prepare(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	api, err := listen(cfg.APISocket(), 0o666) // callers are told apart by their uid
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, api.close()) }()
	admin, err := listen(cfg.AdminSocket(), 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, admin.close()) }()

	self, err := os.Executable()
	if err != nil {
		return err
	}
	engineVar, err := variable(engineEnv, engineSettings{
		Engine: engine.Settings{MaxConns: cfg.MaxConnections, LockBuffers: cfg.Dev == "", Version: version.String()},
		Log:    cfg.Log,
	})
	if err != nil {
		return err
	}
	controlVar, err := variable(controlEnv, cfg)
	if err != nil {
		return err
	}
	engineVars := []string{engineVar}
	if plant.On { // a test's build: the bug that it plants is alive in the engine
		engineVars = append(engineVars, plant.Variable+"="+os.Getenv(plant.Variable))
	}
	return keeper.Run(ctx, keeper.Config{
		Self: []string{self}, EngineEnv: engineVars, ControlEnv: []string{controlVar},
		API: api.file, Admin: admin.file, Log: logger(cfg.Log, os.Stderr, "keeper"),
	})
}

// Engine is the process of `vacate engine`.
func Engine() error {
	var s engineSettings
	if err := settings(engineEnv, &s); err != nil {
		return err
	}
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
	return control.Run(context.Background(), cfg, control.Files{
		API: os.NewFile(3, "api"), Admin: os.NewFile(4, "admin"), Link: os.NewFile(5, "link"), Death: os.NewFile(6, "death"),
	}, logger(cfg.Log, os.Stderr, "control"))
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
