// Command subscriber reads topics as a member of a group and prints each record: partition, offset, key, value.
//
//	go run ./examples/subscriber -group billing orders
//
// Start it twice and the two share the partitions; stop or kill one and the other takes over. A record is acknowledged
// after it was printed, so that nothing is lost; what was printed and not yet acknowledged when a member dies
// is printed again by the next.
package main

import (
	"bufio"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
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

// subscribe hands each batch to handle and acknowledges it, whatever becomes of connections and nodes, until ctx is done.
func subscribe(ctx context.Context, bus pb.SubscriberServiceClient, start *pb.SubscribeStart, handle func(*pb.DeliveredBatch)) error {
	for ctx.Err() == nil {
		stream, err := bus.Subscribe(context.WithoutCancel(ctx))
		if err == nil {
			_ = stream.Send(&pb.SubscribeRequest{Start: start})
			member := &member{stream: stream}
			unbind := context.AfterFunc(ctx, member.leave)
			for err == nil {
				var in *pb.SubscribeResponse
				in, err = stream.Recv()
				if in.GetStarted() != nil {
					start.MemberId = in.Started.MemberId // after a broken stream we come back as who we were
				}
				for _, b := range in.GetBatches() {
					member.process(b, handle)
				}
			}
			unbind()
		}
		if c := status.Code(err); err != io.EOF && c != codes.Unavailable && c != codes.Aborted {
			return err
		}
		if ctx.Err() == nil && err != io.EOF {
			log.Printf("%v; connecting again", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond): // where several nodes are one bus, the next one is there at once
		}
	}
	return nil
}

// member sends on a stream: a stream takes one sender at a time, and none after the half-close.
type member struct {
	stream pb.SubscriberService_SubscribeClient
	mutex  sync.Mutex
	left   bool
}

// process handles a batch and acknowledges it; after leaving it does neither, and the batch goes to the next member.
func (m *member) process(b *pb.DeliveredBatch, handle func(*pb.DeliveredBatch)) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if !m.left {
		handle(b)
		_ = m.stream.Send(&pb.SubscribeRequest{Acks: []*pb.Delivery{b.Delivery}}) // its failure is told by Recv
	}
}

// leave half-closes: the broker commits what was acknowledged, passes the partitions on and ends the stream.
func (m *member) leave() {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.left = true
	_ = m.stream.CloseSend()
}

func main() {
	address := flag.String("address", cmp.Or(os.Getenv("POSTBUS_ADDRESS"), "localhost:7070"), "any node of the bus; or several, as ipv4:host:port,host:port")
	group := flag.String("group", "my_group", "group to join; the first member creates it")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: subscriber [flags] topic…")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	conn, err := connect(*address)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	start := &pb.SubscribeStart{Group: *group, ClientId: "go-example"}
	for _, topic := range flag.Args() {
		start.Topics = append(start.Topics, &pb.TopicSelector{Topic: topic})
	}
	out := bufio.NewWriter(os.Stdout)
	if err := subscribe(ctx, pb.NewSubscriberServiceClient(conn), start, func(b *pb.DeliveredBatch) { print(out, b) }); err != nil {
		log.Fatal(err)
	}
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

// print writes a batch, all of it before it returns: what is acknowledged must be out.
func print(out *bufio.Writer, b *pb.DeliveredBatch) {
	for i, r := range b.Batch.Records {
		offset := b.Delivery.GetBaseOffset() + int64(i)
		if i < len(b.OffsetDeltas) {
			offset = b.Delivery.GetBaseOffset() + int64(b.OffsetDeltas[i])
		}
		fmt.Fprintf(out, "%d\t%d\t%s\t%s\n", b.Delivery.GetPartition(), offset, r.Key, r.Value)
	}
	if err := out.Flush(); err != nil {
		log.Fatal(err)
	}
}
