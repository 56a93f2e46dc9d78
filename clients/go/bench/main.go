// Command bench measures publishers that keep one record in flight each, over PublishStream, with generated stubs only.
//
//	go run ./bench -topic bench -publishers 64 -seconds 5
//
// It prints one JSON object: records a second, and the percentiles of the time from Send to the acknowledgement
// in microseconds. The topic must exist. It stops at the first failure: a rate with failures in it means nothing.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "postbus.dev/go/postbus/v1"
)

type load struct {
	Topic           string `json:"topic"`
	Publishers      int    `json:"publishers"`
	Connections     int    `json:"connections"`
	ValueBytes      int    `json:"value_bytes"`
	Acks            string `json:"acks"`
	RequestIDs      bool   `json:"request_ids"`
	addresses       []string
	partitions      int
	records         int64
	seconds, warmup float64
}

type result struct {
	load
	Records int     `json:"records"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"records_per_second"`
	P50us   int64   `json:"p50_us"`
	P99us   int64   `json:"p99_us"`
	P999us  int64   `json:"p999_us"`
	MaxUs   int64   `json:"max_us"`
}

func main() {
	var l load
	addresses := flag.String("address", "localhost:7070", "nodes, separated by commas; connections take turns")
	flag.StringVar(&l.Topic, "topic", "bench", "topic to publish to")
	flag.IntVar(&l.Publishers, "publishers", 64, "publishers, each with a stream of its own and one record in flight")
	flag.IntVar(&l.Connections, "connections", 1, "connections that they share; 0: one each")
	flag.IntVar(&l.ValueBytes, "value-bytes", 100, "size of a record's value")
	flag.IntVar(&l.partitions, "partitions", 0, "publisher i names partition i modulo this; 0: the broker chooses")
	flag.Int64Var(&l.records, "records", 0, "stop after so many records; 0: stop by time")
	flag.Float64Var(&l.seconds, "seconds", 5, "stop after so long")
	flag.Float64Var(&l.warmup, "warmup-seconds", 0.5, "time before measuring starts")
	flag.StringVar(&l.Acks, "acks", "all", "all, leader or none")
	flag.BoolVar(&l.RequestIDs, "request-ids", false, "give each record a request id")
	flag.Parse()
	l.addresses = strings.Split(*addresses, ",")
	if l.Connections == 0 {
		l.Connections = l.Publishers
	}
	r, err := l.run()
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		log.Fatal(err)
	}
}

// run opens every stream and publishes one record on each first, so that what is measured is the steady state.
func (l *load) run() (*result, error) {
	acks, known := pb.Acks_value["ACKS_"+strings.ToUpper(l.Acks)]
	if !known || l.Publishers < 1 || l.Connections < 1 {
		return nil, errors.New("see -help: acks are all, leader or none; publishers and connections are positive")
	}
	buses := make([]pb.PublisherServiceClient, l.Connections)
	for i := range buses {
		conn, err := grpc.NewClient(l.addresses[i%len(l.addresses)], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		buses[i] = pb.NewPublisherServiceClient(conn)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)

	var ready, finished sync.WaitGroup
	var measuring, stopping atomic.Bool
	var published atomic.Int64
	taken := make([][]time.Duration, l.Publishers)
	begin := make(chan struct{})
	full := make(chan struct{})
	for i := range taken {
		ready.Add(1)
		finished.Add(1)
		go func() {
			defer finished.Done()
			publish, err := l.open(ctx, buses[i%len(buses)], i, pb.Acks(acks))
			if err == nil {
				_, err = publish()
			}
			ready.Done()
			for <-begin; err == nil && !stopping.Load(); {
				var took time.Duration
				if took, err = publish(); err == nil && measuring.Load() {
					taken[i] = append(taken[i], took)
					if published.Add(1) == l.records {
						close(full)
					}
				}
			}
			if err != nil {
				cancel(fmt.Errorf("publisher %d: %w", i, err))
			}
		}()
	}
	ready.Wait()
	close(begin)
	wait(ctx, time.Duration(l.warmup*float64(time.Second)), nil)
	started := time.Now()
	measuring.Store(true)
	if l.records > 0 {
		wait(ctx, time.Hour, full)
	} else {
		wait(ctx, time.Duration(l.seconds*float64(time.Second)), nil)
	}
	measuring.Store(false)
	elapsed := time.Since(started)
	stopping.Store(true)
	finished.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return l.summary(slices.Concat(taken...), elapsed)
}

// open starts a stream and returns what publishes one record on it and waits for the acknowledgement.
func (l *load) open(ctx context.Context, bus pb.PublisherServiceClient, number int, acks pb.Acks) (func() (time.Duration, error), error) {
	stream, err := bus.PublishStream(ctx)
	if err != nil {
		return nil, err
	}
	value := make([]byte, l.ValueBytes)
	_, _ = rand.Read(value)
	request := &pb.PublishStreamRequest{Publish: &pb.PublishRequest{
		Topic: l.Topic, Acks: acks, Batch: &pb.RecordBatch{Records: []*pb.Record{{Value: value}}},
	}}
	if l.partitions > 0 {
		partition := int32(number % l.partitions)
		request.Publish.Partition = &partition
	}
	name := rand.Text()
	return func() (time.Duration, error) {
		request.CorrelationId++
		if l.RequestIDs {
			request.Publish.RequestId = fmt.Sprintf("%s-%d", name, request.CorrelationId)
		}
		sent := time.Now()
		_ = stream.Send(request) // its failure is told by Recv
		for {
			response, err := stream.Recv()
			if err != nil {
				return 0, err
			}
			for _, ack := range response.Acks {
				if ack.Failure != nil {
					return 0, errors.New(ack.Failure.String())
				}
				if ack.CorrelationId == request.CorrelationId {
					return time.Since(sent), nil
				}
			}
		}
	}, nil
}

func (l *load) summary(taken []time.Duration, elapsed time.Duration) (*result, error) {
	if len(taken) == 0 {
		return nil, errors.New("nothing was acknowledged")
	}
	slices.Sort(taken)
	at := func(share float64) int64 { return taken[int(share*float64(len(taken)-1))].Microseconds() }
	return &result{load: *l, Records: len(taken), Seconds: elapsed.Seconds(), Rate: float64(len(taken)) / elapsed.Seconds(),
		P50us: at(0.50), P99us: at(0.99), P999us: at(0.999), MaxUs: at(1)}, nil
}

// wait waits for the time, the event or the end of ctx, whichever comes first.
func wait(ctx context.Context, atMost time.Duration, event <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-event:
	case <-time.After(atMost):
	}
}
