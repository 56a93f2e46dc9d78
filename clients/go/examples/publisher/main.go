// Command publisher publishes each argument, or each line of standard input, as one record.
//
//	go run ./examples/publisher -topic orders hello world
//	printf 'N1\tdeparted\nN1\tlanded\n' | go run ./examples/publisher -topic flights -key-delimiter '\t'
//
// Every record is a request with an id of its own on one PublishStream. When a node goes away, what was not
// acknowledged is sent again, in order and with the same ids, so that nothing is lost and nothing appears twice.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	pb "postbus.dev/go/postbus/v1"
)

// Requests out without an answer. Bounds what is sent again, and keeps a stream from filling up in both directions.
const window = 1000

func main() {
	address := flag.String("address", cmp.Or(os.Getenv("POSTBUS_ADDRESS"), "localhost:7070"), "any node of the bus; or several, as ipv4:host:port,host:port")
	topic := flag.String("topic", "my_topic", "topic to publish to; it must exist")
	delimiter := flag.String("key-delimiter", "", `what separates key and value, such as '\t'; empty: no keys`)
	idPrefix := flag.String("request-id-prefix", rand.Text(), "request ids are this and the record's number; repeat it to repeat a run safely")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	conn, err := connect(*address)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	var lines io.Reader = os.Stdin
	if flag.NArg() > 0 {
		lines = strings.NewReader(strings.Join(flag.Args(), "\n"))
	}
	requests := make(chan *pb.PublishStreamRequest)
	go func() {
		defer close(requests)
		scanner := bufio.NewScanner(lines)
		scanner.Buffer(nil, 1<<20) // a record is at most 1 MiB
		for number := uint64(1); scanner.Scan(); number++ {
			requests <- &pb.PublishStreamRequest{CorrelationId: number, Publish: &pb.PublishRequest{
				Topic:     *topic,
				Batch:     &pb.RecordBatch{Records: []*pb.Record{record(scanner.Text(), strings.ReplaceAll(*delimiter, `\t`, "\t"))}},
				RequestId: fmt.Sprintf("%s-%d", *idPrefix, number),
			}}
		}
		if err := scanner.Err(); err != nil {
			log.Fatalf("reading lines: %v", err)
		}
	}()

	p := &publisher{bus: pb.NewPublisherServiceClient(conn), requests: requests}
	if err := p.run(ctx); err != nil {
		log.Fatalf("%v (%d acknowledged, %d of unknown outcome)", err, p.acknowledged, len(p.unacked))
	}
	log.Printf("published %d records, %d of them by an earlier try", p.acknowledged, p.duplicates)
}

// connect knows one address, which may be a DNS name for all nodes, or several: when a node goes away, the next stream
// finds the next one.
func connect(address string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second}),
	}
	nodes, several := strings.CutPrefix(address, "ipv4:")
	if !several {
		return grpc.NewClient(address, options...)
	}
	// gRPC's form of a list of addresses, which gRPC for Go does not know by itself.
	list := manual.NewBuilderWithScheme("ipv4")
	var state resolver.State
	for _, node := range strings.Split(nodes, ",") {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: node}}})
	}
	list.InitialState(state)
	return grpc.NewClient("ipv4:///postbus", append(options, grpc.WithResolvers(list))...)
}

func record(line, delimiter string) *pb.Record {
	if key, value, found := strings.Cut(line, delimiter); found && delimiter != "" {
		return &pb.Record{Key: []byte(key), Value: []byte(value)}
	}
	return &pb.Record{Value: []byte(line)}
}

// publisher sends requests until their channel closes, over as many streams as it takes.
type publisher struct {
	bus          pb.PublisherServiceClient
	requests     <-chan *pb.PublishStreamRequest
	unacked      []*pb.PublishStreamRequest // in the order in which they were first sent
	acknowledged int
	duplicates   int
}

// run publishes to the end, or returns an error that no retry would mend.
func (p *publisher) run(ctx context.Context) error {
	for {
		err := p.stream(ctx)
		if err == nil || ctx.Err() != nil || !retriable(err) {
			return err
		}
		log.Printf("%v; connecting again", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond): // where several nodes are one bus, the next one is there at once
		}
	}
}

// stream publishes over one stream until everything is acknowledged or the stream fails.
func (p *publisher) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.bus.PublishStream(ctx)
	if err != nil {
		return err
	}
	// Room for every answer that can be out: the reader never waits for a sender that waits for the broker,
	// which waits for its answers to be read.
	responses, ended := make(chan *pb.PublishStreamResponse, window+1), make(chan error, 1)
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				ended <- err
				close(responses)
				return
			}
			responses <- response
		}
	}()

	// A failed Send says only io.EOF; the reason comes from Recv, so the loop below goes on until that ends.
	for _, request := range p.unacked {
		_ = stream.Send(request)
	}
	draining := false
	for {
		next := p.requests
		if draining || len(p.unacked) >= window {
			next = nil // nothing new; the answers still come
		}
		if len(p.unacked) == 0 && (draining || p.requests == nil) {
			_ = stream.CloseSend()
			if draining {
				return status.Error(codes.Unavailable, "the node is going away")
			}
			return nil
		}
		select {
		case request, more := <-next:
			if !more {
				p.requests = nil
				continue
			}
			p.unacked = append(p.unacked, request)
			_ = stream.Send(request)
		case response, more := <-responses:
			if !more {
				if err := <-ended; !errors.Is(err, io.EOF) {
					return err
				}
				return status.Error(codes.Unavailable, "the node ended the stream")
			}
			draining = draining || response.Draining != nil
			if err := p.settle(response.Acks); err != nil {
				return err
			}
		}
	}
}

// settle forgets what was appended. A failure ends the stream: what follows it there would fail too, to keep the order.
func (p *publisher) settle(acks []*pb.PublishAck) error {
	for _, ack := range acks {
		if f := ack.Failure; f != nil {
			code := codes.Code(f.Code)
			if code == codes.ResourceExhausted && f.RetryAfter != nil {
				code = codes.Unavailable
			}
			return status.Error(code, f.Message)
		}
		for i, request := range p.unacked {
			if request.CorrelationId == ack.CorrelationId {
				p.unacked = append(p.unacked[:i], p.unacked[i+1:]...)
				p.acknowledged++
				break
			}
		}
		for _, published := range ack.Result.GetRanges() {
			if published.Duplicate {
				p.duplicates++
			}
		}
	}
	return nil
}

// retriable: these may be sent again, because every request carries an id.
func retriable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded:
		return true
	}
	return false
}
