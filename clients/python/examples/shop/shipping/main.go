// Command shipping reads orders as a member of the group "shipping", packs each and publishes it to shipments.
//
//	go run . -address localhost:7070
//
// It knows the bus and nobody else, and uses generated stubs alone. An order is acknowledged after its shipment is
// durable; when it comes again all the same (a kill between the two), the order's id tells: the shipment's request id
// is made of it, so that the bus appends it once. SIGTERM lets it finish: what is in hand is packed and acknowledged, and
// the others get its partitions. With -listen, /healthz says that it is not stuck, /readyz that it is a member.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "postbus.dev/go/postbus/v1"
)

// order is what shipping wants to know of an OrderPlaced event; the rest is none of its business.
type order struct {
	OrderID  string `json:"order_id"`
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
	GiftNote string `json:"gift_note"` // since v2 of orders
}

type shipment struct {
	OrderID  string `json:"order_id"`
	Parcel   string `json:"parcel"`
	GiftNote string `json:"gift_note,omitempty"` // since v2 of shipping
}

type service struct {
	publisher  pb.PublisherServiceClient
	subscriber pb.SubscriberServiceClient
	release    string
	delay      time.Duration
	member     atomic.Bool // of the group; stays so while a broken stream is mended
}

func main() {
	address := flag.String("address", cmp.Or(os.Getenv("POSTBUS_ADDRESS"), "localhost:7070"), "any node of the bus")
	listen := flag.String("listen", os.Getenv("SHOP_LISTEN"), "host:port for /healthz and /readyz; empty: nowhere")
	delay, err := time.ParseDuration(cmp.Or(os.Getenv("SHOP_DELAY"), "0s"))
	if err != nil {
		log.Fatalf("SHOP_DELAY: %v", err)
	}
	var s service
	release := cmp.Or(os.Getenv("SHOP_RELEASE"), "v1")
	flag.StringVar(&s.release, "release", release, "which code is deployed: v1, or v2, which puts gift notes on parcels")
	flag.DurationVar(&s.delay, "delay", delay, "how long packing one order takes")
	flag.Parse()
	if *listen != "" {
		listener, err := net.Listen("tcp", *listen)
		if err != nil {
			log.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(s.answer), ReadTimeout: 5 * time.Second}
		go func() { log.Fatal(server.Serve(listener)) }()
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second}))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	s.publisher, s.subscriber = pb.NewPublisherServiceClient(conn), pb.NewSubscriberServiceClient(conn)
	if err := s.run(ctx); err != nil {
		log.Fatal(err)
	}
}

// answer tells whoever watches over it.
func (s *service) answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" && !s.member.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// run ships orders, whatever becomes of connections and nodes, until ctx is done.
func (s *service) run(ctx context.Context) error {
	start := &pb.SubscribeStart{
		Group:           "shipping",
		Topics:          []*pb.TopicSelector{{Topic: "orders"}},
		MaxBatchRecords: 10, // packing is slow: acknowledge often
		WindowRecords:   50, // and what was sent here stays here, however many members come to help
	}
	for ctx.Err() == nil {
		err := s.ship(ctx, start)
		if c := status.Code(err); ctx.Err() == nil && err != io.EOF && c != codes.Unavailable && c != codes.Aborted {
			return err
		}
		pause(ctx, time.Second)
	}
	return nil
}

// ship serves one stream until it ends: with io.EOF after ctx was done and what was in hand is acknowledged.
func (s *service) ship(ctx context.Context, start *pb.SubscribeStart) error {
	stream, err := s.subscriber.Subscribe(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	_ = stream.Send(&pb.SubscribeRequest{Start: start}) // a failed Send is told by Recv
	var sending sync.Mutex                              // a stream takes one sender at a time, half-closing included
	unbind := context.AfterFunc(ctx, func() {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.CloseSend()
	})
	defer unbind()
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		if in.Started != nil {
			s.member.Store(true)
			start.MemberId = in.Started.MemberId // after a broken stream we come back as who we were
		}
		for _, batch := range in.Batches {
			sending.Lock()
			if ctx.Err() == nil { // after leaving, what is not packed goes to the next member
				err = s.pack(ctx, batch.Batch.Records)
				if err == nil {
					_ = stream.Send(&pb.SubscribeRequest{Acks: []*pb.Delivery{batch.Delivery}})
				}
			}
			sending.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// pack returns when a shipment of each order is durable.
func (s *service) pack(ctx context.Context, records []*pb.Record) error {
	for _, record := range records {
		var o order
		if err := json.Unmarshal(record.Value, &o); err != nil || o.OrderID == "" {
			// Anybody may publish anything, and one such record must not stop the others.
			log.Printf("%q is no order; passed over", record.Value)
			continue
		}
		time.Sleep(s.delay)
		packed := shipment{OrderID: o.OrderID, Parcel: fmt.Sprintf("%d x %s for %s", o.Quantity, o.Item, o.Customer)}
		if s.release == "v2" {
			packed.GiftNote = o.GiftNote
		}
		if err := s.publish(ctx, record.Key, packed); err != nil {
			return err
		}
		fmt.Println(o.OrderID)
	}
	return nil
}

// publish returns when the shipment is in the log, once, however many tries that took.
func (s *service) publish(ctx context.Context, key []byte, packed shipment) error {
	value, err := json.Marshal(packed)
	if err != nil {
		return err
	}
	request := &pb.PublishRequest{
		Topic:     "shipments",
		Batch:     &pb.RecordBatch{Records: []*pb.Record{{Key: key, Value: value}}},
		RequestId: "shipment-" + packed.OrderID,
	}
	for {
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		_, err := s.publisher.Publish(try, request)
		cancel()
		if c := status.Code(err); ctx.Err() != nil || c != codes.Unavailable && c != codes.DeadlineExceeded {
			return err
		}
		log.Printf("%v; trying again", err)
		pause(ctx, time.Second)
	}
}

func pause(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}
